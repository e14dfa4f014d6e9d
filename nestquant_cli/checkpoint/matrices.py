"""Checks the packed matrices of a checkpoint: words, row scales, and the errors that the report records."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..base.progress import track
from ..codecs.protocol import Checked
from ..codecs.registry import codec_of
from ..codecs.weights import WeightCode
from ..modules.inputs import padded_size
from ..modules.layout import REFLECTORS, Layout, LinearLayout
from ..rotation.reflections import rotation_for
from ..rotation.seeds import dual
from .findings import VerifyReport
from .manifest import MANIFEST, REPORT
from .original import kept_problem, matrix_problem, relative_error
from .tensors import TensorChecks

_NUMBERS = ("relative_error", "hessian_error", "damping")  # of each record: finite and not negative


class MatrixChecks:
    """The packed matrices of a layout.

    Args:
        report: where problems are noted.
        layout: layout of the checkpoint.
        records: record of each matrix by name, as in the report; None where the report could not be read.
        tensors: only those that are sound are looked into.
    """

    def __init__(
        self, report: VerifyReport, layout: Layout, records: dict[str, Any] | None, tensors: TensorChecks
    ) -> None:
        self.report, self.layout, self.records, self.tensors = report, layout, records, tensors

    def run(self, original: PreTrainedModel | None) -> None:
        """Checks every matrix, with an original also against its weights."""
        coded = {name: (linear, linear.code) for name, linear in self.layout.matrices.items()}
        packed = {name: (linear, code) for name, (linear, code) in coded.items() if code is not None}
        for name, (linear, code) in track(packed.items(), "checking matrices", total=len(packed)):
            forms = linear.tensors()
            if {f"{name}.{leaf}" for leaf in forms} <= self.tensors.sound:
                self._check(name, linear, code, original)
        for name in sorted(set(self.records or {}) - set(packed)):
            self.report.add(REPORT, name, "config.json has no such quantized matrix")

    def _check(self, name: str, linear: LinearLayout, code: WeightCode, original: PreTrainedModel | None) -> None:
        stored = {}
        for leaf, (shape, dtype) in linear.tensors().items():
            if self.tensors.found[f"{name}.{leaf}"][1].shape != shape:
                self.report.add("config.json", name, f"its {leaf} should be of shape {list(shape)}")
                return
            data = self.tensors.data(f"{name}.{leaf}")
            stored[leaf] = data.view("<i2" if dtype == torch.int16 else np.uint8).reshape(shape)
        checked = codec_of(code).check(code, stored, padded_size(linear.in_features))
        sound = True
        for leaf in sorted(checked.problems, reverse=True):
            sound &= self.report.add(self.tensors.found[f"{name}.{leaf}"][0], f"{name}.{leaf}", checked.problems[leaf])
        record = None if self.records is None else self.records.get(name)
        if not sound or self.records is None:
            return
        if not self.report.add(REPORT, name, check_record(record, linear, code, checked)):
            return
        assert record is not None
        self.report.matrices += 1
        self.report.words += checked.words
        self.report.recorded[name] = record["relative_error"]
        if original is not None:
            packed = {leaf: torch.from_numpy(np.array(data)) for leaf, data in stored.items()}
            self._compare(original, name, linear, code, packed)

    def _compare(
        self,
        original: PreTrainedModel,
        name: str,
        linear: LinearLayout,
        code: WeightCode,
        packed: dict[str, Tensor],
    ) -> None:
        reflectors = self._reflectors(linear)
        order, parts = padded_size(linear.in_features), self.layout.parts.get(linear.input, 1)
        rotation = rotation_for(order, dual(self.layout.seed_of(linear.input)), reflectors, parts)
        found, problem = matrix_problem(
            original,
            name,
            linear,
            self.report.recorded[name],
            lambda weight: relative_error(weight, packed, code, rotation),
        )
        self.report.add(self.tensors.found[f"{name}.words"][0], name, problem)
        if found is not None:
            self.report.recomputed[name] = found

    def _reflectors(self, linear: LinearLayout) -> Tensor | None:
        name = f"{linear.input}.{REFLECTORS}"
        if linear.input not in self.layout.reflections or name not in self.tensors.sound:
            return None
        data: NDArray[np.int16] = self.tensors.data(name).view("<i2")
        shape = self.tensors.found[name][1].shape
        return torch.from_numpy(np.array(data)).view(torch.bfloat16).view(shape)

    def compare_kept(self, original: PreTrainedModel, tuned: dict[str, Any]) -> None:
        """Tensors that are not quantized against the original's, byte by byte; the recorded change of `tuned` ones.

        Those that the original has of its own, and the checkpoint not at all, are problems, too.
        """
        originals, matrices = original.state_dict(), self.layout.matrices
        coded = {f"{name}.weight" for name, linear in matrices.items() if linear.code}
        coded |= {f"{table.head}.weight" for table in self.layout.tables.values()}
        for name in sorted(
            originals.keys() - original.all_tied_weights_keys.keys() - coded - self.tensors.described.keys()
        ):
            self.report.add(MANIFEST, name, "the original model has this tensor, the checkpoint does not")
        for name in sorted(self.tensors.sound):
            if name.endswith(f".{REFLECTORS}"):
                continue
            linear = matrices.get(name.rpartition(".")[0])
            if linear is None or name.endswith((".weight", ".bias")):
                problem = kept_problem(originals, name, self.tensors.data(name).tobytes(), tuned.get(name))
                self.report.add(self.tensors.found[name][0], name, problem)


def check_record(record: Any, linear: LinearLayout, code: WeightCode, checked: Checked) -> str | None:
    """What is wrong with the report's record of a matrix, or disagrees with what is stored."""
    if not isinstance(record, dict):
        return "has no record"
    if record.get("shape") != [linear.out_features, linear.in_features]:
        return f"records the shape {record.get('shape')}, not {[linear.out_features, linear.in_features]}"
    for name in _NUMBERS:
        value = record.get(name)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            return f"records the {name} {value}, not a finite number"
    return codec_of(code).check_record(code, record, checked)
