"""The data of a report page, read from a checkpoint's headers and from the record of its quantization."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import kind_of_matrix
from ..checkpoint.byte_counts import Inspection
from ..checkpoint.inspect import inspect
from ..checkpoint.manifest import REPORT
from ..evaluation.measure_perplexity import PerplexityReport
from ..storage.files import read_json


@dataclass(frozen=True)
class Sample:
    """A continuation of the prompt by one model.

    Attributes:
        model: name of the model.
        text: new text, without the prompt.
    """

    model: str
    text: str


@dataclass(frozen=True)
class PageData:
    """Everything on the page.

    Attributes:
        inspection: bits and bytes of the checkpoint.
        records: record of the quantization of each matrix, by name: `relative_error` of its weights, `hessian_error` of
            its outputs, `beta_histogram` …
        scores: perplexity compared with the original; None without a baseline.
        prompt: text that the models continue, "" for no samples.
        samples: continuations, of the checkpoint first, then of the baseline.
    """

    inspection: Inspection
    records: dict[str, dict[str, Any]]
    scores: PerplexityReport | None
    prompt: str
    samples: list[Sample]

    def layer_errors(self, key: str) -> list[float]:
        """Mean of an error over the matrices of each decoder layer, in order of the layers.

        Args:
            key: "relative_error" or "hessian_error".
        """
        return [
            math.fsum(self.records[matrix.name][key] for matrix in matrices) / len(matrices)
            for matrices in self.inspection.layers().values()
        ]

    def layer_bits(self) -> list[float]:
        """Bits per weight of each decoder layer, words and row scales, in order of the layers."""
        return [
            8 * sum(m.word_bytes + m.scale_bytes for m in matrices) / sum(m.weights for m in matrices)
            for matrices in self.inspection.layers().values()
        ]

    def betas(self) -> dict[str, list[float]]:
        """Share of blocks that use each scale β, smallest first, by kind of matrix; empty without nested codes."""
        counts: dict[str, list[int]] = {}
        for name, record in self.records.items():
            kind = counts.setdefault(kind_of_matrix(name), [])
            for index, count in enumerate(record.get("beta_histogram") or ()):
                kind.extend([0] * (index + 1 - len(kind)))
                kind[index] += count
        return {kind: [count / sum(values) for count in values] for kind, values in counts.items() if sum(values)}

    def most_damaged(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Names and records of the `count` matrices with the largest output error on calibration text, worst first."""
        order = sorted(self.records.items(), key=lambda item: item[1]["hessian_error"], reverse=True)
        return order[:count]


def read_page_data(
    folder: Path, scores: PerplexityReport | None = None, prompt: str = "", samples: list[Sample] | None = None
) -> PageData:
    """Reads the data of a report page.

    Args:
        folder: checkpoint folder.
        scores: perplexity compared with the original, if it was measured.
        prompt: text that the samples continue.
        samples: continuations of the prompt.

    Raises:
        NestQuantError: no packed checkpoint, no quantized weights, or no record of their quantization.
    """
    inspection = inspect(folder)
    records = read_json(folder / REPORT).get("matrices", {})
    missing = [matrix.name for matrix in inspection.matrices if "hessian_error" not in records.get(matrix.name, {})]
    if not inspection.matrices or missing:
        cause = f"{folder} has no record of {missing[0]}" if missing else f"no weight of {folder} is quantized"
        raise NestQuantError(cause, "no report was made", "give a checkpoint as 'nestquant quantize' wrote it")
    return PageData(inspection, records, scores, prompt, samples or [])
