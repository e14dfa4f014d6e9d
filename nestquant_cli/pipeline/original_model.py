"""The model that is quantized: its weights, tokenizer and hash, opened in one go, and what is refused of it."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint.load import load_model
from ..models.source import Source, fingerprint, load_tokenizer
from ..models.weights import Weights, open_weights
from ..parallel.team import team
from .examine import examine
from .recipe import Recipe


@dataclass(frozen=True)
class OriginalModel:
    """An opened model that is to be quantized.

    Attributes:
        source: folder, GGUF file or Hub repository of the model, with the commit.
        weights: the model, whole in memory or read from its files layer by layer.
        tokenizer: the model's tokenizer.
        sha256: hex fingerprint of configuration and weights (rule: `models.fingerprint`).
        dtype: dtype that was asked for; "auto" for the model's own.
    """

    source: Source
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    sha256: str
    dtype: str = "auto"

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.weights.decoder.layers)

    def whole(self) -> PreTrainedModel:
        """The model whole in memory on its device: read anew where it is read layer by layer."""
        weights = self.weights
        return load_model(self.source, self.dtype, str(weights.device)) if weights.lazy else weights.model


def open_original(source: Source, device: str, dtype: str = "auto", recipe: Recipe | None = None) -> OriginalModel:
    """Opens a model and refuses what cannot be quantized. Every process of a team calls this.

    Args:
        source: the model.
        device: device to compute on.
        dtype: dtype of the weights: "auto" for the model's own, "float32", "bfloat16" or "float16".
        recipe: settings of the quantization; None is the default.

    Raises:
        NestQuantError: a packed checkpoint, an unsupported kind of model, or weights that are not finite.
    """
    examine(source, Recipe() if recipe is None else recipe, dtype)
    weights = open_weights(source, device, dtype)
    tokenizer = load_tokenizer(source)

    def check_and_hash() -> str:  # reads all files, so one process does it for all
        weights.refuse_unusable()
        return fingerprint(source)

    sha256 = team().run_on_rank0(check_and_hash)
    return OriginalModel(source, weights, tokenizer, sha256, dtype)
