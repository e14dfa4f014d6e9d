"""The model card of a packed checkpoint: README.md with what is known of it, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.inspection import Inspection
from .results import Measured, without_folder

CARRIED = ("license", "license_name", "license_link", "language")  # of the base model's card


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: the Hub id of its base model, and what is carried over from that one's card."""

    base: str
    metadata: dict[str, Any]


def model_card(
    repo: str, origin: Origin, found: Inspection, measured: Sequence[Measured], commands: Sequence[str]
) -> str:
    """The whole card.

    Args:
        repo: Hub id of the checkpoint.
        origin: what the checkpoint was made from.
        found: its bits.
        measured: rows of the table; it is left out where there are none.
        commands: that measured them.
    """
    bits = ", ".join(f"{part} {value:g}" for part, value in found.bits.items())
    real = "no weight is quantized" if found.bits_per_weight is None else f"{found.bits_per_weight:.4f} bits per weight"
    name = repo.rpartition("/")[2]
    lines = [
        *_metadata(origin),
        f"# {name}",
        "",
        f"`{origin.base}` quantized with nested E8 lattice codes (NestQuant, arXiv "
        "[2502.09720](https://arxiv.org/abs/2502.09720)). The weights are packed on disk and in memory.",
        "",
        f"- bits of the codes (16 is not quantized): {bits}",
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
        *_measured(measured, commands),
        "## Recipe",
        "",
        *_table(("setting", "value"), [(key, _value(value)) for key, value in found.recipe.items()]),
        "",
        "## Licence",
        "",
        f"That of the base model: {_licence(origin.metadata)}.",
    ]
    return "\n".join(lines) + "\n"


def _metadata(origin: Origin) -> list[str]:
    import yaml

    carried = {key: origin.metadata[key] for key in CARRIED if origin.metadata.get(key)}
    about = {
        **carried,
        "base_model": origin.base,
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nestquant", "quantized"],
    }
    return ["---", yaml.safe_dump(about, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def _measured(measured: Sequence[Measured], commands: Sequence[str]) -> list[str]:
    if not measured:
        return []
    rows = [(each.what, each.value, each.original, each.protocol) for each in measured]
    table = _table(("measured", "this model", "original", "protocol"), rows)
    return ["## Measured", "", *table, "", *(f"    {command}" for command in commands), ""]


def _licence(metadata: dict[str, Any]) -> str:
    name = str(metadata.get("license_name") or metadata["license"])
    link = metadata.get("license_link")
    return f"[{name}]({link})" if link else name


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _value(value: Any) -> str:
    return "" if value is None else without_folder(str(value))
