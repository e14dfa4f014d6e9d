"""A matrix of the layout as a part of a layer of vLLM."""

from dataclasses import dataclass

from ...codecs.weights import TensorForms
from ...modules.inputs import padded_size
from ...modules.layout import LinearLayout
from .names import Rows


@dataclass(frozen=True)
class Piece:
    """One matrix of the layout in a layer, or the rows of it that this process has.

    Attributes:
        place: which outputs of the layer it is.
        linear: what the layout says of it.
    """

    place: Rows
    linear: LinearLayout

    def tensors(self, rows: int) -> TensorForms:
        """The tensors that are stored of so many rows."""
        code = self.linear.code
        return {} if code is None else code.tensors(rows, padded_size(self.linear.in_features))

    def whole(self, name: str) -> bool:
        """Whether a tensor is one for all rows."""
        return self.tensors(1)[name] == self.tensors(2)[name]
