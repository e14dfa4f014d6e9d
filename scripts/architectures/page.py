"""The page of models for users: counts, what works by structure, and a row for each case."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nestquant_cli.base.markdown import table

from .verdicts import ERROR, NO_CACHE, NOT_RUN, REFUSED, WEIGHTS, WHOLE, WORKS, WRONG, Verdict

Row = dict[str, Any]
OUTCOMES = [WHOLE, NO_CACHE, WEIGHTS, REFUSED, WRONG, ERROR, NOT_RUN]

IMAGES, STATES, HYBRID, EXPERTS, CONV1D, CROSS, DENSE, UNKNOWN = (
    "Images and text",
    "States alone",
    "States or short convolutions beside attention",
    "Experts",
    "Conv1D",
    "Cross-attention that is never called",
    "Dense",
    "Not run",
)
STRUCTURES = [DENSE, EXPERTS, HYBRID, STATES, IMAGES, CONV1D, CROSS, UNKNOWN]


def structure_of(row: Row) -> str:
    """The structure by which a case is listed."""
    plain = row.get("plain", {})
    if "parts" not in plain:
        return UNKNOWN
    states = any("LinearAttention" in kind for kind in plain["cache"])
    attention = any("LinearAttention" not in kind or "FullAttention" in kind for kind in plain["cache"])
    chosen = [
        (row["built"]["images"], IMAGES),
        (states and attention, HYBRID),
        (states or not plain["cache"], STATES),
        ("experts" in plain["parts"], EXPERTS),
        ("Conv1D" in plain["parts"], CONV1D),
        (bool(plain["never_called"]), CROSS),
    ]
    return next((name for holds, name in chosen if holds), DENSE)


def tables(rows: Iterable[Row]) -> str:
    """Markdown: what was counted, by structure, and the rows of each structure."""
    judged = [(row, Verdict.of(row)) for row in rows]
    by_structure: dict[str, list[tuple[Row, Verdict]]] = defaultdict(list)
    for row, verdict in judged:
        by_structure[structure_of(row)].append((row, verdict))
    lines = ["## Counts", "", *_versions(judged), "", *_counts(judged), "", *_structures(by_structure)]
    for name in STRUCTURES:
        if by_structure[name]:
            lines += ["", f"## {name}", "", *_rows(by_structure[name])]
    return "\n".join(lines) + "\n"


def _versions(judged: list[tuple[Row, Verdict]]) -> list[str]:
    found = sorted({row["versions"] for row, _ in judged})
    return [f"Run with {' and '.join(found)}, on a CPU."]


def _counts(judged: list[tuple[Row, Verdict]]) -> list[str]:
    """The table of outcomes: each model type once, by its usual form; other forms apart."""
    groups: dict[str, Counter[str]] = {"classes of causal language models": Counter()}
    groups |= {"classes of images and text": Counter(), "other forms": Counter()}
    for row, verdict in judged:
        images = row.get("built", {}).get("images", False)
        kind = "classes of images and text" if images else "classes of causal language models"
        groups["other forms" if ":" in row["name"] else kind][verdict.outcome] += 1
    heads = ["", "all", *OUTCOMES]
    return table(heads, [[name, c.total(), *(c[o] for o in OUTCOMES)] for name, c in groups.items()], numbers=True)


def _structures(by_structure: dict[str, list[tuple[Row, Verdict]]]) -> list[str]:
    """The table of outcomes by structure."""
    counts = {name: Counter(verdict.outcome for _, verdict in by_structure[name]) for name in STRUCTURES}
    rows = [[name, c.total(), *(c[o] for o in OUTCOMES)] for name, c in counts.items() if c]
    return table(["structure", "all", *OUTCOMES], rows, numbers=True)


def _rows(judged: list[tuple[Row, Verdict]]) -> list[str]:
    """The table of the cases of one structure: those that work first."""
    heads = ["model type", "class", "outcome", "quantized", "KL at 4 bits", "KL at 8 bits", "in 16 bits, or why not"]
    ordered = sorted(judged, key=lambda pair: (OUTCOMES.index(pair[1].outcome), pair[0]["name"]))
    return table(heads, [_cells(row, verdict) for row, verdict in ordered])


def _cells(row: Row, verdict: Verdict) -> list[str]:
    loaded, eight = row.get("loaded", {}), row.get("eight", {})
    numbers = ["", "", ""]
    if verdict.outcome in WORKS.values():
        share = loaded["entries"] / max(1, loaded["original_entries"])
        numbers = [f"{share:.1%}", f"{loaded['kl']:.3f}", f"{eight['kl']:.4f}"]
    reason = verdict.reason.partition(";")[0]
    notes = [reason[:200], *_left(loaded), *(f"defect: {defect}" for defect in verdict.defects if defect != reason)]
    return [
        row["name"],
        row.get("built", {}).get("class", ""),
        verdict.outcome,
        *numbers,
        "; ".join(filter(None, notes)),
    ]


def _left(loaded: Row) -> list[str]:
    """What stays in 16 bits, the largest first."""
    names = [name.removesuffix(".weight") for name in loaded.get("left", {})]
    return [", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")]


def missing(rows: Iterable[Row]) -> list[str]:
    """Classes of the mapping of causal language models that no row is about."""
    found = {row["name"] for row in rows}
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in found]
