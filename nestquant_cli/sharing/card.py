"""The model card of a packed checkpoint: README.md with what is known of it, and what people wrote beside that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..base.markdown import escaped, table
from ..calibration.named_datasets import C4, WIKITEXT2
from ..checkpoint.byte_counts import Inspection
from .results import Measured, without_folder
from .user_text import TAGS, UserText

CARRIED = ("license", "license_name", "license_link", "language")  # of the base model's card
_DATASETS = {"wikitext2": WIKITEXT2[0], "c4": C4}


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: the Hub id of its base model, and what is carried over from that one's card."""

    base: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What is known of a checkpoint.

    Attributes:
        repo: its Hub id.
        origin: what it was made from.
        found: its bits.
        measured: rows of the table; it is left out where there are none.
        commands: that measured them.
    """

    repo: str
    origin: Origin
    found: Inspection
    measured: Sequence[Measured]
    commands: Sequence[str]


def model_card(facts: Facts, kept: UserText, pushed: str | None) -> str:
    """The whole card.

    Args:
        facts: what the generated part says.
        kept: what it stands in.
        pushed: hash of `kept` at the last push, this one included.
    """
    return f"---\n{_metadata(facts, kept)}\n---\n\n{kept.around(_body(facts), pushed)}"


def _metadata(facts: Facts, kept: UserText) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_DATASETS.get(each.dataset, each.dataset),
            dataset_name=each.dataset,
            dataset_split=each.split,
            metric_type=each.metric,
            metric_name=each.what,
            metric_value=each.number,
        )
        for each in facts.measured
    ]
    rest = dict(kept.metadata)
    tags = [*TAGS, *rest.pop("tags", [])]
    carried = {key: facts.origin.metadata[key] for key in CARRIED if facts.origin.metadata.get(key)}
    return ModelCardData(
        **carried,
        base_model=facts.origin.base,
        base_model_relation="quantized",
        datasets=_DATASETS.get(str(facts.found.recipe.get("dataset"))),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        eval_results=results or None,
        model_name=facts.repo.rpartition("/")[2] if results else None,
        **rest,
    ).to_yaml()


def _body(facts: Facts) -> str:
    found, repo = facts.found, facts.repo
    bits = ", ".join(f"{part} {value:g}" for part, value in found.bits.items())
    real = "no weight is quantized" if found.bits_per_weight is None else f"{found.bits_per_weight:.4f} bits per weight"
    lines = [
        f"# {escaped(repo.rpartition('/')[2])}",
        "",
        f"`{facts.origin.base}` quantized with nested E8 lattice codes (NestQuant, arXiv "
        "[2502.09720](https://arxiv.org/abs/2502.09720)). The weights are packed on disk and in memory.",
        "",
        f"- made from: {escaped(_made_from(found.recipe, facts.origin.base))}",
        f"- bits of the codes (16 is not quantized): {escaped(bits)}",
        f"- real bits, from the bytes on disk: {real}, everything of the quantized layers counted "
        f"({found.quantized_weights:,} weights; {found.file_bytes:,} bytes in all)",
        "",
        "## Use",
        "",
        "```python",
        "import nestquant_cli  # teaches transformers the format",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{repo}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        "```",
        "",
        f'    nestquant generate {repo} "Once upon a time"',
        "",
        *_measured(facts.measured, facts.commands),
        "## Recipe",
        "",
        *table(("setting", "value"), [(key, _value(value)) for key, value in found.recipe.items()]),
        "",
        "## Licence",
        "",
        f"That of the base model: {_licence(facts.origin.metadata)}.",
    ]
    return "\n".join(lines)


def _made_from(recipe: dict[str, Any], base: str) -> str:
    """The words of config.json for the model that was quantized; older ones have an id at most."""
    return without_folder(str(recipe.get("model") or recipe.get("base_model") or base))


def _measured(measured: Sequence[Measured], commands: Sequence[str]) -> list[str]:
    if not measured:
        return []
    rows = [(each.what, each.value, each.original, each.protocol) for each in measured]
    lines = table(("measured", "this model", "original", "protocol"), rows)
    references = dict.fromkeys(each.reference for each in measured if each.reference)
    named = [line for reference in references for line in ("", f"Original: {escaped(reference)}.")]
    return ["## Measured", "", *lines, *named, "", *(f"    {' '.join(command.split())}" for command in commands), ""]


def _licence(metadata: dict[str, Any]) -> str:
    name = escaped(metadata.get("license_name") or metadata["license"])
    link = metadata.get("license_link")
    return f"[{name}]({quote(str(link), safe='/:?#@!$&+,;=%~')})" if link else name


def _value(value: Any) -> str:
    return "" if value is None else without_folder(str(value))
