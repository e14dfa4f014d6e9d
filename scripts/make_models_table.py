"""Writes the tables of docs/models.md from the rows of scripts/check_architectures.py.

    python scripts/make_models_table.py build/architectures.jsonl

It refuses rows that leave out a class which transformers maps to causal language models.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nestquant_cli.storage.files import write_text

if TYPE_CHECKING:
    from scripts.architectures.page import missing, tables
else:
    from architectures.page import missing, tables  # the script's own folder is on the path of a script that is run

TARGET = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- begin: written by scripts/make_models_table.py -->\n", "<!-- end -->\n"


def page(text: str, content: str) -> str:
    """The page with the content between its two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + content + END + rest.split(END)[1]


def main() -> None:
    """Reads the rows and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines that check_architectures.py wrote")
    lines = parser.parse_args().rows.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if absent := missing(rows):
        sys.exit(f"error: no rows of {', '.join(absent)}; nothing was written; run check_architectures.py again")
    write_text(TARGET, page(TARGET.read_text(encoding="utf-8"), tables(rows)))


if __name__ == "__main__":
    main()
