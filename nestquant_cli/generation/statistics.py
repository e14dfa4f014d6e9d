"""Speed and memory of a generation."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..base.units import format_bytes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GenerationStatistics:
    """What a generation took.

    Attributes:
        prompt_tokens: that were read; `reused_tokens` more were in the cache from before.
        prompt_seconds: until the first new token.
        new_tokens: generated.
        seconds: time from the first new token to the last.
        weight_bytes: bytes of all parameters in memory; `resident` is the form of the quantized ones, if any.
        cache_bytes: bytes of keys and values, None if the model did not return them.
        peak_bytes: peak memory of the process, or of the GPU that it runs on.
    """

    prompt_tokens: int
    reused_tokens: int
    prompt_seconds: float
    new_tokens: int
    seconds: float
    weight_bytes: int
    resident: str | None
    cache_bytes: int | None
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float | None:
        """Of the new tokens after the first, which is counted with the prompt; None for fewer than two."""
        return (self.new_tokens - 1) / self.seconds if self.new_tokens > 1 and self.seconds > 0 else None

    def line(self) -> str:
        """All of it for a reader."""
        speed = "" if self.tokens_per_second is None else f", {self.tokens_per_second:.1f} tokens/s"
        reused = f" and {self.reused_tokens} kept" if self.reused_tokens else ""
        form = f" ({self.resident})" if self.resident else ""
        cache = "" if self.cache_bytes is None else f"keys and values {format_bytes(self.cache_bytes)}, "
        return (
            f"{self.new_tokens} tokens{speed}; prompt of {self.prompt_tokens} tokens{reused} in "
            f"{self.prompt_seconds:.2f} s; memory: weights {format_bytes(self.weight_bytes)}{form}, {cache}"
            f"peak {format_bytes(self.peak_bytes)}"
        )

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def weight_bytes(model: "nn.Module") -> int:
    """Bytes of all parameters in memory, quantized weights in the form that they are held in."""
    from ..modules.attach import quantized_linears
    from ..modules.resident import resident_bytes

    inside = {id(each) for linear in quantized_linears(model).values() for each in linear.parameters()}
    biases = sum(linear.bias.nbytes for linear in quantized_linears(model).values() if linear.bias is not None)
    plain = sum(each.nbytes for each in model.parameters() if id(each) not in inside)
    return plain + biases + resident_bytes(model)


def cache_bytes(cache: Any) -> int | None:
    """Bytes held for keys and values, with the room for more tokens; None for a cache that keeps something else."""
    total = 0
    for layer in getattr(cache, "layers", []):
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if part is None:
                return None
            total += part.untyped_storage().nbytes()
    return total or None
