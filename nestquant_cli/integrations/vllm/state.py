"""What the layers of one model share while vLLM builds it in a process."""

import os
from collections.abc import Iterable
from typing import Any

import torch

from ...base.errors import NestQuantError
from ...modules.inputs import padded_size
from ...modules.parse_layout import parse_layout
from ...modules.resident import check_form, int8_fits
from ...rotation.reflections import Reflections
from .hub_names import HubNames
from .names import Names

RESIDENT = "NESTQUANT_RESIDENT"  # environment variable: the form of the weights in memory


class ModelState:
    """The layout of a model and what was made of it so far.

    Args:
        value: `layout` of config.json.
        model_types: `model_type` of the model's configuration, and of its text model.

    Attributes:
        layout: the layout.
        names: its matrices, by the names that vLLM has for them.
        hub: from those names to the ones on the Hub, where they differ and the model has experts.
        experts: vLLM's name for each matrix of an expert, by that of its parameter.
        gathers: whether it was said that processes exchange the inputs of row-parallel layers.
        place: the layer that vLLM built last, or the tensor or matrix that it loaded last.

    Raises:
        NestQuantError: the layout is damaged, of a later version, or has tables; NESTQUANT_RESIDENT is no form.
    """

    def __init__(self, value: Any, model_types: Iterable[str] = ()) -> None:
        self.layout = parse_layout(value)
        if self.layout.tables:
            raise NestQuantError(
                "the checkpoint has a coded embedding or head, which the plugin does not know",
                "it is not served",
                "quantize without --embedding-bits and --head-bits, or use the checkpoint in transformers",
            )
        self.names = Names(self.layout.linears)
        self.hub = HubNames(model_types, self.layout.linears)
        self.names.rename(self.hub)
        self.experts: dict[str, str] = {}
        self.gathers = False
        self.place = ""
        self._form = os.environ.get(RESIDENT) or "auto"
        self._reflections: dict[str, Reflections] = {}
        check_form(self._form)

    def reflections(self, name: str) -> Reflections | None:
        """The learned rotation of the input `name`, one for all layers; None where it has none.

        Its vectors are set when the layer that they are stored with is loaded.
        """
        count = self.layout.reflections.get(name)
        if count is None:
            return None
        if name not in self._reflections:
            order = padded_size(self.layout.linears[name].in_features)
            self._reflections[name] = Reflections(count, order, "cpu")
        return self._reflections[name]

    def int8(self, device: torch.device) -> bool:
        """Whether weights are held as int8 rather than packed; chosen once, when the first one is loaded.

        Args:
            device: where they are.
        """
        if self._form == "auto":
            linears = [
                linear for linear in self.layout.linears.values() if linear.code is not None and linear.code.int8
            ]
            entries = sum(linear.out_features * padded_size(linear.in_features) for linear in linears)
            self._form = "int8" if int8_fits(entries, device) else "packed"
        return self._form == "int8"

    def refuse_untaken(self, layers: range | None) -> None:
        """Raises NestQuantError where a matrix of the layout is in no layer of the model, once all of it is built.

        Args:
            layers: numbers of the decoder layers of this process; None for all.
        """
        missing = [name for name in self.names.untaken() if layers is None or number_in(name) in layers]
        if missing:
            raise NestQuantError(
                f"the model in vLLM has no layer for {len(missing)} coded matrices, such as {missing[0]}",
                "the checkpoint was not loaded",
                "use it in transformers",
            )


def number_in(name: str) -> int:
    """The first number in the dotted name of a matrix, that of its decoder layer; 0 where it has none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
