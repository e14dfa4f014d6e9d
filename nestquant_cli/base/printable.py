"""Text from checkpoints, models and files that others wrote, without the characters that control a terminal."""

import unicodedata

NOT_SHOWN = "\N{REPLACEMENT CHARACTER}"
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of a pair, ends of lines and paragraphs
_DIRECTIONS = frozenset(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def escaped(text: str, keep: str = "") -> str:
    """The text with every character that would control a terminal as a Python escape, such as ``\\x1b``.

    Args:
        text: any text.
        keep: control characters that are left unchanged, such as "\\n\\t".
    """
    if text.isprintable():
        return text
    return "".join(_as_escape(c) if _controls_terminal(c) and c not in keep else c for c in text)


def shown(text: str) -> str:
    """The text with NOT_SHOWN (�) for every character that would control a terminal, but for line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(NOT_SHOWN if _controls_terminal(c) and c not in "\n\t" else c for c in text)


def _as_escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _controls_terminal(character: str) -> bool:
    """Whether a terminal may act on a character. Spaces of other widths, joiners and the like are harmless."""
    return unicodedata.category(character) in _CONTROL or character in _DIRECTIONS
