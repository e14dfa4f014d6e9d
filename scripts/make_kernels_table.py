"""Writes the table of operations in docs/kernels.md, from the table that the program reads.

python scripts/make_kernels_table.py
"""

import inspect
from pathlib import Path

from nestquant_cli.kernels.contract import Kernels
from nestquant_cli.kernels.table import TABLE
from nestquant_cli.storage.files import write_text

TARGET = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- begin: written by scripts/make_kernels_table.py -->\n", "<!-- end -->\n"


def table() -> str:
    """The rows of all operations: what each computes, and in what its CPU and GPU functions are written."""
    lines = ["| operation | what it computes | on the CPU | on a GPU |", "|---|---|---|---|"]
    for name, operation in TABLE.items():
        about = str(inspect.getdoc(getattr(Kernels, name))).splitlines()[0].rstrip(".").replace("|", "\\|")
        note = f" ({operation.limits})" if operation.limits else ""
        lines.append(f"| `{name}` | {about}{note} | {operation.written_in('cpu')} | {operation.written_in('gpu')} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table of today between its two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    write_text(TARGET, page(TARGET.read_text(encoding="utf-8")))
