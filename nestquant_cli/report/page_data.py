"""What a report of a packed checkpoint shows, read from its headers and from the record of its quantization."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..checkpoint.byte_counts import Inspection
from ..checkpoint.inspect import inspect
from ..checkpoint.manifest import REPORT
from ..evaluation.measure_perplexity import PerplexityReport
from ..storage.files import read_json


@dataclass(frozen=True)
class Sample:
    """A continuation of the prompt by one model."""

    model: str
    text: str


@dataclass(frozen=True)
class PageData:
    """Everything on the page.

    Attributes:
        inspection: bits and bytes.
        records: of the quantization by matrix: `relative_error` of weights, `hessian_error` of outputs, …
        scores: perplexity beside the original; None where no baseline was given.
        prompt, samples: what the models made of it, this one first.
    """

    inspection: Inspection
    records: dict[str, dict[str, Any]]
    scores: PerplexityReport | None
    prompt: str
    samples: list[Sample]

    def layer_errors(self, key: str) -> list[float]:
        """Mean of an error over the matrices of each decoder layer, in order."""
        return [
            math.fsum(self.records[matrix.name][key] for matrix in matrices) / len(matrices)
            for matrices in self.inspection.layers().values()
        ]

    def layer_bits(self) -> list[float]:
        """Bits per weight of words and scales of each decoder layer, in order."""
        return [
            8 * sum(each.word_bytes + each.scale_bytes for each in matrices) / sum(each.weights for each in matrices)
            for matrices in self.inspection.layers().values()
        ]

    def betas(self) -> dict[str, list[float]]:
        """Share of blocks under each scale, smallest first, for each kind of matrix; empty without nested codes."""
        counts: dict[str, list[int]] = {}
        for name, record in self.records.items():
            kind = counts.setdefault(name.rpartition(".")[2], [])
            for place, count in enumerate(record.get("beta_histogram") or ()):
                kind.extend([0] * (place + 1 - len(kind)))
                kind[place] += count
        return {kind: [each / sum(values) for each in values] for kind, values in counts.items() if sum(values)}

    def most_damaged(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The matrices with the largest output error on the calibration text, the worst first."""
        order = sorted(self.records.items(), key=lambda item: item[1]["hessian_error"], reverse=True)
        return order[:count]


def read_page_data(
    folder: Path, scores: PerplexityReport | None = None, prompt: str = "", samples: list[Sample] | None = None
) -> PageData:
    """The contents for a checkpoint.

    Raises:
        NestQuantError: no packed checkpoint, or one without quantized weights or without a record of them.
    """
    found = inspect(folder)
    records = read_json(folder / REPORT).get("matrices", {})
    missing = [matrix.name for matrix in found.matrices if "hessian_error" not in records.get(matrix.name, {})]
    if not found.matrices or missing:
        cause = f"{folder} has no record of {missing[0]}" if missing else f"no weight of {folder} is quantized"
        raise NestQuantError(cause, "no report was made", "give a checkpoint as 'nestquant quantize' wrote it")
    return PageData(found, records, scores, prompt, samples or [])
