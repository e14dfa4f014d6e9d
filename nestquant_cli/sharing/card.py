"""The model card of a packed checkpoint: README.md with a generated part and what people wrote around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..base.markdown import escaped, table
from ..calibration.named_datasets import C4, WIKITEXT2
from ..checkpoint.byte_counts import Inspection
from ..models.auto_class import IMAGES
from .results import Measured, without_folder
from .user_text import TAGS, UserText

CARRIED = ("license", "license_name", "license_link", "language")  # keys that are copied from the base model's card
_DATASETS = {"wikitext2": WIKITEXT2[0], "c4": C4}


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        base: Hub id of the base model.
        metadata: values of the keys `CARRIED` on the base model's card.
    """

    base: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the generated part of a card says about a checkpoint.

    Attributes:
        repo: Hub id of the checkpoint.
        origin: model that it was made from.
        inspection: its bits, bytes and recipe.
        measured: rows of the table of results; without any, the card has no table.
        commands: command lines that measured them.
        auto: name of the Auto class of transformers that opens the checkpoint.
    """

    repo: str
    origin: Origin
    inspection: Inspection
    measured: Sequence[Measured]
    commands: Sequence[str]
    auto: str = "AutoModelForCausalLM"


def model_card(facts: Facts, kept: UserText, pushed: str | None) -> str:
    """The text of the whole card: metadata in YAML, then Markdown.

    Args:
        facts: what the generated part says.
        kept: text and metadata that people wrote, which stay.
        pushed: hash of `kept` at the last push, this one included.
    """
    return f"---\n{_metadata(facts, kept)}\n---\n\n{kept.around(_body(facts), pushed)}"


def _metadata(facts: Facts, kept: UserText) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",  # whatever else the model takes, text alone was measured
            dataset_type=_DATASETS.get(row.dataset, row.dataset),
            dataset_name=row.dataset,
            dataset_split=row.split,
            metric_type=row.metric,
            metric_name=row.what,
            metric_value=row.number,
        )
        for row in facts.measured
    ]
    rest = dict(kept.metadata)
    tags = [*TAGS, *rest.pop("tags", [])]
    carried = {key: facts.origin.metadata[key] for key in CARRIED if facts.origin.metadata.get(key)}
    return ModelCardData(
        **carried,
        base_model=facts.origin.base,
        base_model_relation="quantized",
        datasets=_DATASETS.get(str(facts.inspection.recipe.get("dataset"))),
        library_name="transformers",
        pipeline_tag="image-text-to-text" if facts.auto == IMAGES else "text-generation",
        tags=tags,
        eval_results=results or None,
        model_name=facts.repo.rpartition("/")[2] if results else None,
        **rest,
    ).to_yaml()


def _body(facts: Facts) -> str:
    inspection, repo = facts.inspection, facts.repo
    reader = "AutoProcessor" if facts.auto == IMAGES else "AutoTokenizer"
    bits = ", ".join(f"{part} {value:g}" for part, value in inspection.bits.items())
    real = (
        "no weight is quantized"
        if inspection.bits_per_weight is None
        else f"{inspection.bits_per_weight:.4f} bits per weight"
    )
    lines = [
        f"# {escaped(repo.rpartition('/')[2])}",
        "",
        f"`{facts.origin.base}` quantized with nested E8 lattice codes (NestQuant, arXiv "
        "[2502.09720](https://arxiv.org/abs/2502.09720)). The weights are packed on disk and in memory.",
        "",
        f"- made from: {escaped(_made_from(inspection.recipe, facts.origin.base))}",
        f"- bits of the codes (16 is not quantized): {escaped(bits)}",
        f"- real bits, from the bytes on disk: {real}, counting all bytes of the quantized layers "
        f"({inspection.quantized_weights:,} weights; {inspection.file_bytes:,} bytes in all)",
        "",
        "## Use",
        "",
        "```python",
        "import nestquant_cli  # teaches transformers the format",
        f"from transformers import {facts.auto}, {reader}",
        "",
        f'model = {facts.auto}.from_pretrained("{repo}")',
        f'{reader.removeprefix("Auto").lower()} = {reader}.from_pretrained("{repo}")',
        "```",
        "",
        f'    nestquant generate {repo} "Once upon a time"',
        "",
        *_measured(facts.measured, facts.commands),
        "## Recipe",
        "",
        *table(("setting", "value"), [(key, _value(value)) for key, value in inspection.recipe.items()]),
        "",
        "## Licence",
        "",
        f"That of the base model: {_licence(facts.origin.metadata)}.",
    ]
    return "\n".join(lines)


def _made_from(recipe: dict[str, Any], base: str) -> str:
    """The description of the model that was quantized; older checkpoints record at most its Hub id."""
    return without_folder(str(recipe.get("model") or recipe.get("base_model") or base))


def _measured(measured: Sequence[Measured], commands: Sequence[str]) -> list[str]:
    if not measured:
        return []
    rows = [(row.what, row.value, row.original, row.protocol) for row in measured]
    lines = table(("measured", "this model", "original", "protocol"), rows)
    references = dict.fromkeys(row.reference for row in measured if row.reference)
    named = [line for reference in references for line in ("", f"Original: {escaped(reference)}.")]
    return ["## Measured", "", *lines, *named, "", *(f"    {' '.join(command.split())}" for command in commands), ""]


def _licence(metadata: dict[str, Any]) -> str:
    name = escaped(metadata.get("license_name") or metadata["license"])
    link = metadata.get("license_link")
    return f"[{name}]({quote(str(link), safe='/:?#@!$&+,;=%~')})" if link else name


def _value(value: Any) -> str:
    return "" if value is None else without_folder(str(value))
