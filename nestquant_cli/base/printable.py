"""Text from checkpoints, models and files of anyone, in a form that cannot steer the terminal it is printed on."""

import unicodedata

NOT_SHOWN = "\N{REPLACEMENT CHARACTER}"
_STEERING = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of a pair, ends of lines and paragraphs
_DIRECTIONS = frozenset(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def escaped(text: str, keep: str = "") -> str:
    """The text with every character that would steer a terminal as Python writes it, such as ``\\x1b``.

    Args:
        text: any.
        keep: characters that stay as they are, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(_written(each) if _steers(each) and each not in keep else each for each in text)


def shown(text: str) -> str:
    """A text of many lines with NOT_SHOWN for every character that would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(NOT_SHOWN if _steers(each) and each not in "\n\t" else each for each in text)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _steers(character: str) -> bool:
    """Spaces of other widths, joiners within a sign and the like do not: texts of many languages need them."""
    return unicodedata.category(character) in _STEERING or character in _DIRECTIONS
