"""Checks the packed matrices of a checkpoint: words, row scales, and the errors that the report records."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..lattice.code import NestedCode, row_bytes
from ..modules.inputs import padded_size
from ..modules.layout import Layout, LinearLayout
from ..progress import track
from .contents import check_record, check_row_scales, check_words
from .manifest import REPORT
from .original import kept_problem, matrix_problem, relative_error
from .tensors import TensorChecks
from .verification import VerifyReport


class MatrixChecks:
    """The packed matrices of a layout.

    Args:
        report: where problems are noted.
        layout: of the checkpoint.
        records: by name, as in the report; None where the report could not be read.
        tensors: only those that are sound are looked into.
    """

    def __init__(
        self, report: VerifyReport, layout: Layout, records: dict[str, Any] | None, tensors: TensorChecks
    ) -> None:
        self.report, self.layout, self.records, self.tensors = report, layout, records, tensors

    def run(self, original: PreTrainedModel | None) -> None:
        """Checks every matrix, with an original also against its weights."""
        coded = {name: (linear, self.layout.code_of(linear)) for name, linear in self.layout.linears.items()}
        packed = {name: (linear, code) for name, (linear, code) in coded.items() if code is not None}
        for name, (linear, code) in track(packed.items(), "checking matrices", total=len(packed)):
            if {f"{name}.words", f"{name}.row_scale"} <= self.tensors.sound:
                self._check(name, linear, code, original)
        for name in sorted(set(self.records or {}) - set(packed)):
            self.report.add(REPORT, name, "config.json has no such quantized matrix")

    def _check(self, name: str, linear: LinearLayout, code: NestedCode, original: PreTrainedModel | None) -> None:
        file, entry = self.tensors.found[f"{name}.words"]
        scale_file, scale_entry = self.tensors.found[f"{name}.row_scale"]
        width = row_bytes(padded_size(linear.in_features), code.word_bits)
        if (entry.shape, scale_entry.shape) != ((linear.out_features, width), (linear.out_features,)):
            self.report.add("config.json", name, f"its words should be of shape {[linear.out_features, width]}")
            return
        words = self.tensors.data(f"{name}.words").reshape(entry.shape)
        scales: NDArray[np.int16] = self.tensors.data(f"{name}.row_scale").view("<i2")
        histogram, problem = check_words(words, linear, code)
        sound = self.report.add(file, f"{name}.words", problem)
        sound &= self.report.add(scale_file, f"{name}.row_scale", check_row_scales(scales))
        record = None if self.records is None else self.records.get(name)
        if not sound or self.records is None:
            return
        if not self.report.add(REPORT, name, check_record(record, linear, histogram)):
            return
        assert record is not None
        self.report.matrices += 1
        self.report.words += sum(histogram)
        self.report.recorded[name] = record["relative_error"]
        if original is not None:
            packed = torch.from_numpy(np.array(words)), torch.from_numpy(np.array(scales))
            self._compare(original, name, linear, code, packed)

    def _compare(
        self,
        original: PreTrainedModel,
        name: str,
        linear: LinearLayout,
        code: NestedCode,
        packed: tuple[Tensor, Tensor],
    ) -> None:
        found, problem = matrix_problem(
            original,
            name,
            linear,
            self.report.recorded[name],
            lambda weight: relative_error(weight, *packed, code, self.layout.seed),
        )
        self.report.add(self.tensors.found[f"{name}.words"][0], name, problem)
        if found is not None:
            self.report.recomputed[name] = found

    def compare_kept(self, original: PreTrainedModel, tuned: dict[str, Any]) -> None:
        """Tensors that are not quantized against the original's, byte by byte; the recorded change of `tuned` ones."""
        originals = original.state_dict()
        for name in sorted(self.tensors.sound):
            linear = self.layout.linears.get(name.rpartition(".")[0])
            if linear is None or name.endswith((".weight", ".bias")):
                problem = kept_problem(originals, name, self.tensors.data(name).tobytes(), tuned.get(name))
                self.report.add(self.tensors.found[name][0], name, problem)
