"""The matrices of the experts in one layer of vLLM as quantized Linears, and the parameters that vLLM loads them by."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...codecs.registry import codec_of
from ...models.experts import ExpertMatrices
from ...modules.inputs import InputQuantizer
from ...modules.layout import REFLECTORS, LinearLayout
from ...modules.linear import QuantizedLinear
from .expert_names import ExpertMatrix, parameter_of, stored_name
from .refusals import not_loaded
from .state import ModelState


class ExpertLoader:
    """Takes the tensors of one matrix of all experts as vLLM loads them.

    Args:
        matrix: names in the layout of the experts that this process has, in order.
        linears: what the layout says of them.
        state: what the layers of the model share.
        dtype: dtype of the layer.

    Attributes:
        matrices: the quantized Linears; their tensors are on the device that is the default where this is made.
    """

    def __init__(
        self, matrix: ExpertMatrix, linears: Sequence[LinearLayout], state: ModelState, dtype: torch.dtype
    ) -> None:
        self._names, self._state = matrix.names, state
        sources = {linear.input: _source(linear, state) for linear in linears}
        modules: list[nn.Linear] = [_linear(linear, sources[linear.input], dtype) for linear in linears]
        self.matrices = ExpertMatrices(modules, False, matrix.parameter)
        self._missing = {(number, name) for number, linear in enumerate(linears) for name in _stored(linear)}
        self._missing |= {(number, REFLECTORS) for number, name in enumerate(self._names) if name in self._turned()}

    def tensors(self) -> list[str]:
        """Names of the tensors that are to be loaded, as parameters have them."""
        return sorted({parameter_of(name) for _, name in self._missing})

    def load(self, tensor: str, expert: int, loaded: Tensor) -> None:
        """Takes a tensor of an expert.

        Args:
            tensor: name of the tensor, as parameters have it.
            expert: number of the expert in this process.
            loaded: the tensor as it is stored.

        Raises:
            NestQuantError: it has another form than the layout says.
        """
        name, matrix = stored_name(tensor), self._names[expert]
        linear = self.matrices.at(expert)
        rotation = self._state.reflections(matrix) if name == REFLECTORS else None
        held: Tensor = getattr(linear, name) if rotation is None else rotation.reflectors
        if (held.shape, held.dtype) != (loaded.shape, loaded.dtype) and not _cast(held, loaded):
            raise not_loaded(f"{matrix}.{name} of {tuple(held.shape)}, but one of {tuple(loaded.shape)}")
        if rotation is None:
            held.data.copy_(loaded)
        else:
            rotation.reflectors = loaded.to(self.matrices.device, copy=True)
        self._missing.discard((expert, name))

    def finish(self) -> None:
        """Brings the matrices into the form that the model's weights have in memory.

        Raises:
            NestQuantError: some tensors were not loaded.
        """
        if self._missing:
            expert, name = min(self._missing)
            raise not_loaded(f"{self._names[expert]}.{name}")
        linears: list[Any] = list(self.matrices)
        for linear in linears:
            if linear.code is not None and self._state.int8(linear.row_scale.device):
                linear.hold_int8()

    def _turned(self) -> dict[str, int]:
        return self._state.layout.reflections


def expert_parameter(load: Callable[[int, str, Tensor], bool]) -> nn.Parameter:
    """An empty parameter whose `weight_loader` hands on what vLLM loads.

    Args:
        load: takes the number of the expert, the matrix ("w1", "w2" or "w3") and the tensor, and says whether the
            expert is in this process.
    """

    def weight_loader(
        param: nn.Parameter,
        loaded_weight: Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None:
        taken = load(expert_id, shard_id, loaded_weight)
        return taken if return_success else None

    parameter = nn.Parameter(torch.empty(0), requires_grad=False)
    parameter.weight_loader = weight_loader  # type: ignore[attr-defined]
    return parameter


def _linear(linear: LinearLayout, source: InputQuantizer, dtype: torch.dtype) -> QuantizedLinear:
    code: Any = linear.code
    kind = QuantizedLinear if code is None else codec_of(code).linear
    made: QuantizedLinear = kind(linear.in_features, linear.out_features, False, source, code, dtype)
    return made


def _source(linear: LinearLayout, state: ModelState) -> InputQuantizer:
    layout = state.layout
    code, learned = layout.inputs[linear.input], state.reflections(linear.input)
    parts = layout.parts.get(linear.input, 1)
    return InputQuantizer(linear.in_features, layout.seed_of(linear.input), code, learned, parts)


def _stored(linear: LinearLayout) -> list[str]:
    """Names of the stored tensors of a matrix, after its own."""
    return ["weight"] if linear.code is None else list(linear.tensors())


def _cast(held: Tensor, loaded: Tensor) -> bool:
    """Whether a tensor may be cast to the dtype of the layer: a weight that is not coded."""
    return held.shape == loaded.shape and held.is_floating_point() and loaded.is_floating_point()
