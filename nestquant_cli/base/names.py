"""What is said where a name is not known: the nearest one that is."""

import difflib
from collections.abc import Iterable

from .errors import NestQuantError


def nearest(name: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """The remedy for an unknown name.

    Args:
        name: what was given.
        known: the names that there are.
        otherwise: what to say where none of them is near; None lists all of them.

    Returns:
        "did you mean 'kv_bits'?", or "use one of …".

    Example:
        >>> nearest("kv-bit", ["act_bits", "kv_bits"])
        "did you mean 'kv_bits'?"
    """
    spelled = {_spelling(each): each for each in known}
    near = difflib.get_close_matches(_spelling(name), spelled, n=4)
    if near:
        return f"did you mean {' or '.join(repr(spelled[each]) for each in near)}?"
    return otherwise if otherwise is not None else f"use one of {', '.join(spelled.values())}"


def refuse_unknown(
    given: Iterable[object], known: Iterable[str], where: str, consequence: str, otherwise: str | None = None
) -> None:
    """Refuses settings that there are not.

    Args:
        given: names of settings.
        known: those that there are.
        where: what has them, such as a file's name.
        consequence: what is not done.
        otherwise: see `nearest`.

    Raises:
        NestQuantError: one of `given` is not in `known`; the remedy names the nearest that is.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise NestQuantError(
                f"{where} has an unknown setting '{name}'", consequence, nearest(name, known, otherwise)
            )


def _spelling(name: object) -> str:
    return str(name).lower().replace("-", "_")
