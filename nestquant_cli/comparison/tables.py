"""A comparison as a table, and as a Markdown report with plots."""

from collections.abc import Sequence

from ..base.markdown import escaped, table
from ..evaluation.provenance import windows_in_words
from .result import Comparison, Row

_NOTE = (
    "Bits per weight are real: the bytes on disk of everything that belongs to the quantized layers. The gap is the "
    "perplexity minus that of the reference; its standard error is over the same windows, whose difficulty is common "
    "to both. KL divergence and top-1 agreement are with the reference, per token."
)


def columns(comparison: Comparison) -> list[str]:
    """Headings of `cells`."""
    tasks = [f"{task} ± s.e." for task in comparison.rows[0].tasks]
    closed = f"gap closed ({comparison.against})" if comparison.against else "gap closed"
    quality = ["gap ± s.e.", *([closed] if comparison.against else []), "KL (nats)", "top-1"]
    return ["recipe", "codes", "bits/weight", "perplexity ± s.e.", *quality, *tasks, "seconds"]


def cells(comparison: Comparison) -> list[list[str]]:
    """One list of texts a row."""
    return [_cells(row, comparison) for row in comparison.rows]


def _cells(row: Row, comparison: Comparison) -> list[str]:
    closed = ["" if row.gap_closed is None else f"{100 * row.gap_closed:.1f} %"] if comparison.against else []
    return [
        row.name,
        codes(row),
        _number(16.0 if row.bits_per_weight is None else row.bits_per_weight, 4),
        _with_error(row.perplexity, row.standard_error, 3),
        _with_error(row.gap, row.gap_standard_error, 3),
        *closed,
        _number(row.kl_divergence, 4),
        _number(row.top1_agreement, 4),
        *(_with_error(*row.tasks[task], 4) if task in row.tasks else "" for task in comparison.rows[0].tasks),
        _number(row.seconds, 0),
    ]


def codes(row: Row) -> str:
    """Such as `w4a4kv4`; empty for the reference."""
    names = {"weight": "w", "act": "a", "kv": "kv"}
    return "".join(f"{short}{row.bits[part]:g}" for part, short in names.items() if row.bits.get(part, 16) < 16)


def markdown(comparison: Comparison, plots: Sequence[str]) -> str:
    """The whole report.

    Args:
        comparison: what is reported.
        plots: names of the picture files in the same folder.
    """
    protocol = comparison.protocol
    calibration = protocol["calibration"]
    lines = [
        f"# {escaped(comparison.model)}: {len(comparison.rows) - 1} quantizations compared",
        "",
        *table(columns(comparison), cells(comparison), numbers=True),
        "",
        _NOTE,
        "",
        f"Reference: {escaped(protocol['reference'])}.",
        "",
        f"Scored: {escaped(protocol['dataset'])} ({protocol['split']}), {windows_in_words(protocol)} "
        f"windows of {protocol['seqlen']} tokens, stride {protocol['stride']}, "
        f"BOS {protocol['bos']}, fp32 log-softmax, dtype {protocol['dtype']}, on {protocol['device']}.",
        "",
        *(f"- {escaped(name)}: calibrated on {escaped(text)}" for name, text in calibration.items()),
        "",
        *(f"![{name}]({name})" for name in plots),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in protocol["versions"].items()) + ".",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    return _number(value, digits) + ("" if error is None else f" ± {error:.{digits}f}")
