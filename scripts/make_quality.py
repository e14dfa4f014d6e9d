"""Makes the tables of docs/quality.md: all recipes by one calibration, scored on all windows of two texts.

    python scripts/make_quality.py demo --calibration wikitext2-train.txt --output quality \\
      --wikitext2 wikitext2-test.txt --c4 c4.txt

Recipes were chosen by the KL divergence on the first 10 windows of wikitext-2, so the tables also have it on the rest.
Checkpoints and scores of windows stay in the output folder. The same command goes on where it stopped, and pays for a
new recipe alone. The tables are written to OUTPUT/tables.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.base.markdown import table
from nestquant_cli.comparison.compare import CompareOptions, compare
from nestquant_cli.comparison.entries import REFERENCE, Entry, read_entries
from nestquant_cli.comparison.result import Comparison, Row, row_of
from nestquant_cli.comparison.saved_scores import FILE
from nestquant_cli.comparison.scoring import scores_step
from nestquant_cli.evaluation.perplexity import Totals
from nestquant_cli.evaluation.provenance import windows_in_words
from nestquant_cli.models.source import resolve
from nestquant_cli.storage.files import read_json, write_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = "w4 w4a16kv4 w4a8kv4 w4a4kv4 spinquant-w4a4kv4 quarot-w4a4kv4 gptq-w4-g64 rtn-w4 w3 gptq-w3-g64"
AGAINST = "spinquant-w4a4kv4"
TEXTS = {"wikitext2": "wikitext-2 test", "c4": "C4 documents"}
SEEN = 10  # windows that choices were made by


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantizes, scores and writes what is not there yet."""
    options = parse(arguments)
    overrides = {"dataset": options.calibration, "samples": options.samples, "seqlen": options.seqlen}
    paths = [path if path.suffix else CONFIGS / f"{path}.yaml" for path in map(Path, options.recipes.split(","))]
    try:
        entries = read_entries(paths, overrides)
        parts = [
            section(compared(options, entries, text), options.output, title)
            for name, title in TEXTS.items()
            if (text := getattr(options, name))
        ]
    except NestQuantError as error:
        sys.exit(f"error: {error}")
    content = "\n".join(parts)
    write_text(options.output / "tables.md", content)
    print(content)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the original")
    parser.add_argument("--calibration", required=True, help="text that all recipes are calibrated on")
    parser.add_argument("--wikitext2", help="text to score; without it there is no table")
    parser.add_argument("--c4", help="another text to score; without it there is no table")
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--recipes", default=RECIPES.replace(" ", ","), help="names in configs/, or YAML files")
    parser.add_argument("--samples", type=int, default=32, help="windows of the calibration")
    parser.add_argument("--seqlen", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--max-windows", type=int, help="windows to score of each text; all without it")
    return parser.parse_args(arguments)


def compared(options: argparse.Namespace, entries: Sequence[Entry], text: str) -> Comparison:
    """All recipes on one text."""
    names = [entry.name for entry in entries]
    return compare(
        CompareOptions(
            resolve(options.model),
            tuple(entries),
            options.output,
            against=AGAINST if AGAINST in names else None,
            dataset=text,
            seqlen=options.seqlen,
            max_windows=options.max_windows,
        )
    )


def section(comparison: Comparison, folder: Path, title: str) -> str:
    """A text's heading, conditions and table."""
    protocol = comparison.protocol
    closed = [f"gap closed ({comparison.against})"] if comparison.against else []
    heads = ["recipe", "real bits per weight", "perplexity ± s.e.", "gap ± s.e.", *closed, "KL (nats)"]
    split = protocol["windows"] > SEEN
    heads += [f"KL, windows 0 to {SEEN - 1}", f"KL, windows {SEEN} to {protocol['windows'] - 1}"] if split else []
    seen, unseen = slice(SEEN), slice(SEEN, None)
    rows = []
    for row in comparison.rows:
        parts = [kl(folder, row.name, protocol, windows) for windows in (seen, unseen)] if split else []
        rows.append(cells(row, bool(closed), parts))
    how = f"{windows_in_words(protocol)} windows of {protocol['seqlen']:,} tokens"
    processor = protocol["machine"]["processor"]["target"]
    calibrations = dict.fromkeys(protocol["calibration"].values())
    lines = [
        f"{title}, {how}; calibrated on {'; '.join(calibrations)}; processor {processor}:",
        "",
        *table([*heads, "top-1 agreement"], rows),
    ]
    return "\n".join(lines) + "\n"


def cells(row: Row, closed: bool, parts: list[str]) -> list[str]:
    """One row of a table; what the reference does not have is empty."""
    share = [] if not closed else ["" if row.gap_closed is None else f"{100 * row.gap_closed:.0f} %"]
    return [
        f"{row.name}.yaml" if row.name != REFERENCE else REFERENCE,
        "16" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
        with_error(row.perplexity, row.standard_error),
        with_error(row.gap, row.gap_standard_error),
        *share,
        "" if row.kl_divergence is None else f"{row.kl_divergence:.3f}",
        *parts,
        "" if row.top1_agreement is None else f"{row.top1_agreement:.3f}",
    ]


def kl(folder: Path, name: str, protocol: Mapping[str, object], windows: slice) -> str:
    """Divergence of a recipe on some of the windows; empty for the reference."""
    if name == REFERENCE:
        return ""
    section, _, step = scores_step(name, protocol).partition("/")
    totals = [Totals(**window) for window in read_json(folder / FILE)[section][step]["value"]]
    part = row_of(
        folder / name, totals[: int(str(protocol["windows"]))][windows], int(str(protocol["seqlen"])) - 1, None
    )
    return f"{part.kl_divergence:.3f}"


def with_error(value: float | None, error: float | None) -> str:
    """A value and its standard error, as far as they are there."""
    return "" if value is None else f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


if __name__ == "__main__":
    main()
