"""Text that others wrote, escaped for Markdown, so that it cannot end a table cell, a line or a page."""

import re
from collections.abc import Sequence
from html import escape

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")  # characters that begin code, emphasis, a link or a cell


def escaped(text: object) -> str:
    """The text as one line that Markdown renders unchanged: HTML and Markdown escaped, white space collapsed."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return _SPECIAL.sub(r"\\\g<0>", escape(words, quote=False))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: bool = False) -> list[str]:
    """Lines of a Markdown table.

    Args:
        heads: headings of the columns, escaped here.
        rows: cells of each row, escaped here.
        numbers: align all columns but the first to the right.
    """
    marks = ["---"] + ["---:" if numbers else "---"] * (len(heads) - 1)
    lines = [[escaped(cell) for cell in row] for row in (heads, *rows)]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], marks, *lines[1:])]
