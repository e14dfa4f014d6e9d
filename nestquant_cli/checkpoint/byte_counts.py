"""The result of `inspect`: bytes of a packed checkpoint by part, by matrix and by layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.small_matrices import Staying

QUANTIZED = "quantized layers"
TABLES = "quantized embedding and head"
KEPT = "16 bits"
OTHER = "other files"


@dataclass(frozen=True)
class Part:
    """One kind of content: its group (QUANTIZED, TABLES, KEPT or OTHER), its name and its bytes on disk."""

    group: str
    name: str
    bytes: int


@dataclass(frozen=True)
class Matrix:
    """One quantized matrix.

    Attributes:
        name: name of the Linear.
        shape: (out_features, in_features).
        code: JSON-ready code, as config.json has it, with the multipliers of a nested one and the groups of lattices.
        description: the code in a few words.
        word_bits: bits of a word, which is eight entries.
        word_bytes, scale_bytes: bytes of the words, and bytes of scales, zeros and lattices.
    """

    name: str
    shape: tuple[int, int]
    code: dict[str, Any]
    description: str
    word_bits: int
    word_bytes: int
    scale_bytes: int

    @property
    def weights(self) -> int:
        """Entries of the original matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Bits of words, scales, zeros and lattices for each weight."""
        return 8 * (self.word_bytes + self.scale_bytes) / self.weights


@dataclass(frozen=True)
class Inspection:
    """The bytes of a checkpoint.

    Attributes:
        folder: folder of the checkpoint.
        parts: whose bytes sum up to those of the files.
        matrices: the quantized ones.
        recipe, bits: settings of the quantization and nominal bits by part, from config.json.
        entropy_bits: bits per weight if the β indices were entropy-coded, from the report's histograms; without row
            scales and parameters. None where there is no report of them.
        staying: matrices of the decoder layers that stay in 16 bits.
        parameters: entries of all tensors of the original model.
    """

    folder: Path
    parts: list[Part]
    matrices: list[Matrix]
    recipe: dict[str, Any]
    bits: dict[str, Any]
    entropy_bits: float | None
    staying: Staying
    parameters: int

    @property
    def quantized_weights(self) -> int:
        """Entries of the matrices that are packed."""
        return sum(matrix.weights for matrix in self.matrices)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that lie in the folder."""
        return sum(part.bytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float | None:
        """All bits that belong to the quantized layers for each quantized weight; None where no weight is quantized."""
        spent = 8 * sum(part.bytes for part in self.parts if part.group == QUANTIZED)
        return spent / self.quantized_weights if self.matrices else None

    @property
    def bits_per_parameter(self) -> float:
        """All bits of the model's tensors and their codes for each parameter; tokenizer and records are left out."""
        return 8 * sum(part.bytes for part in self.parts if part.group != OTHER) / max(1, self.parameters)

    def layers(self) -> dict[str, list[Matrix]]:
        """The matrices by the decoder layer that they belong to, in order."""
        layers: dict[str, list[Matrix]] = {}
        for matrix in self.matrices:
            layers.setdefault(layer_of(matrix.name), []).append(matrix)
        return layers

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; bytes, and bits for each weight."""
        return {
            "bits_per_weight": self.bits_per_weight,
            "quantized_weights": self.quantized_weights,
            "bits_per_parameter": self.bits_per_parameter,
            "parameters": self.parameters,
            "file_bytes": self.file_bytes,
            "parts": [{"group": part.group, "name": part.name, "bytes": part.bytes} for part in self.parts],
            "layers": [_layer_json(name, matrices) for name, matrices in self.layers().items()],
            "entropy_bits_per_weight": self.entropy_bits,
            "staying": self.staying.to_dict(),
            "bits": self.bits,
            "recipe": self.recipe,
        }


def layer_of(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj`: up to the first number."""
    words = name.split(".")
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[0] + 1]) if numbers else name


def _layer_json(name: str, matrices: list[Matrix]) -> dict[str, Any]:
    weights = sum(matrix.weights for matrix in matrices)
    spent = sum(matrix.word_bytes + matrix.scale_bytes for matrix in matrices)
    return {
        "name": name,
        "bits_per_weight": 8 * spent / weights,
        "quantized_weights": weights,
        "bytes": spent,
        "matrices": [
            {
                "name": matrix.name,
                "bits_per_weight": matrix.bits_per_weight,
                "shape": list(matrix.shape),
                **matrix.code,
                "word_bits": matrix.word_bits,
                "words_bytes": matrix.word_bytes,
                "row_scale_bytes": matrix.scale_bytes,
            }
            for matrix in matrices
        ],
    }
