"""Text that others wrote, as plain words in Markdown: no cell, line or page of ours ends early because of it."""

import re
from collections.abc import Sequence
from html import escape

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")  # what begins code, emphasis, a link or a cell


def escaped(text: object) -> str:
    """One line that Markdown shows as it is."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return _SPECIAL.sub(r"\\\g<0>", escape(words, quote=False))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: bool = False) -> list[str]:
    """Lines of a table.

    Args:
        heads: of the columns.
        rows: cells; they and the heads are escaped here.
        numbers: all columns but the first are aligned to the right.
    """
    marks = ["---"] + ["---:" if numbers else "---"] * (len(heads) - 1)
    lines = [[escaped(cell) for cell in row] for row in (heads, *rows)]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], marks, *lines[1:])]
