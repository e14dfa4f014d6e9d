"""Speed and memory of a generation."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..base.units import format_bytes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GenerationStatistics:
    """Speed and memory of one generation.

    Attributes:
        prompt_tokens: tokens of the prompt that were computed.
        reused_tokens: tokens of the prompt whose keys and values were in the cache already.
        prompt_seconds: time to the first new token.
        new_tokens: number of tokens generated.
        seconds: time from the first new token to the last.
        weight_bytes: bytes of all parameters in memory.
        resident: form of the quantized weights in memory, None without any.
        cache_bytes: bytes of keys and values, None if the model did not return them.
        peak_bytes: peak memory of the process, or of the GPU that the model is on.
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
        """Speed of the new tokens after the first, which belongs to the prompt; None for fewer than two."""
        return (self.new_tokens - 1) / self.seconds if self.new_tokens > 1 and self.seconds > 0 else None

    def line(self) -> str:
        """All values as one line of text."""
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
        """All values by name, JSON-ready."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def weight_bytes(model: "nn.Module") -> int:
    """Bytes of all parameters of a model in memory, with quantized weights in their resident form."""
    from ..modules.attach import quantized_linears
    from ..modules.resident import resident_bytes

    quantized = {id(parameter) for linear in quantized_linears(model).values() for parameter in linear.parameters()}
    biases = sum(linear.bias.nbytes for linear in quantized_linears(model).values() if linear.bias is not None)
    plain = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in quantized)
    return plain + biases + resident_bytes(model)


def cache_bytes(cache: Any) -> int | None:
    """Bytes allocated for keys and values, including room for more tokens; None for a cache of another kind."""
    total = 0
    for layer in getattr(cache, "layers", []):
        for states in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if states is None:
                return None
            total += states.untyped_storage().nbytes()
    return total or None
