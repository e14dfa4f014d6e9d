"""Suggestions for unknown names of settings, tasks and files: the nearest name that is known."""

import difflib
from collections.abc import Iterable

from .errors import NestQuantError


def nearest(name: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """The remedy to print for an unknown name. `-`, `_` and case make no difference.

    Args:
        name: the unknown name.
        known: all valid names.
        otherwise: the remedy if no valid name is similar; None lists all of them.

    Returns:
        "did you mean 'kv_bits'?" with at most four names, or `otherwise`, or "use one of …".

    Example:
        >>> nearest("kv-bit", ["act_bits", "kv_bits"])
        "did you mean 'kv_bits'?"
    """
    spelled = {_spelling(valid): valid for valid in known}
    near = difflib.get_close_matches(_spelling(name), spelled, n=4)
    if near:
        return f"did you mean {' or '.join(repr(spelled[spelling]) for spelling in near)}?"
    return otherwise if otherwise is not None else f"use one of {', '.join(spelled.values())}"


def refuse_unknown(
    given: Iterable[object], known: Iterable[str], where: str, consequence: str, otherwise: str | None = None
) -> None:
    """Refuses settings with unknown names.

    Args:
        given: names of the settings.
        known: all valid names.
        where: what has the settings, such as the name of a file.
        consequence: what is not done because of it.
        otherwise: the remedy if no valid name is similar; None lists all valid names.

    Raises:
        NestQuantError: one of `given` is not in `known`; the remedy names the nearest valid name.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise NestQuantError(
                f"{where} has an unknown setting '{name}'", consequence, nearest(name, known, otherwise)
            )


def _spelling(name: object) -> str:
    return str(name).lower().replace("-", "_")


def kind_of_matrix(name: str) -> str:
    """The kind of a matrix by its full name, its last part: "down_proj"; for a matrix of an expert that of all."""
    owner, _, last = name.rpartition(".")
    return owner.rpartition(".")[2] if last.startswith("expert_") else last
