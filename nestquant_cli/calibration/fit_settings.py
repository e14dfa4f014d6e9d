"""The settings of a recipe that calibration needs: which codes to fit, behind which rotation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..codecs.weights import Shape
from .row_parallel import Divided


@dataclass(frozen=True)
class FitSettings:
    """Codes and rotation that calibration fits.

    Attributes:
        act_shape, kv_shape: shapes of the codes of inputs and of keys and values; None for 16 bits.
        seed: seed of the rotation signs and of every random choice.
        rotation: one of `modules.layout.ROTATIONS`.
        weight_shape: shape of the weight code, which a learned rotation is made for; None for 16 bits.
        reflections: number of reflections of a learned rotation.
        centering: whether nested codes of inputs and keys may have centers.
        all_experts: whether every token is measured at every expert, instead of those that the router chose.
        parts: number of parts that the inputs of row-parallel Linears are rotated and rounded in, each by itself.
        channel_scales: whether inputs that are rounded may have factors of their channels in front of the rotation.
        drift_correction: ε of a sequential calibration, from 0 to 1 (`InputStatistics.cross`).
        residual_correction: ρ of a sequential calibration, from 0 to 1 (`InputStatistics.residual`).
        value_shape: shape of the code of values where it is not that of keys; None where it is.
        key_scales: whether keys may have factors of their channels in front of the rotation.
        act_shapes: shapes of the codes of inputs where they are not `act_shape`, by the full name of the first Linear
            that takes the input.
        kv_skip: numbers of layers whose keys and values stay in 16 bits.
    """

    act_shape: Shape | None
    kv_shape: Shape | None
    seed: int
    rotation: str = "hadamard"
    weight_shape: Shape | None = None
    reflections: int = 0
    centering: bool = True
    all_experts: bool = False
    parts: int = 1
    channel_scales: bool = False
    drift_correction: float = 1.0
    residual_correction: float = 0.0
    value_shape: Shape | None = None
    kv_skip: frozenset[int] = frozenset()
    key_scales: bool = False
    act_shapes: Mapping[str, Shape] = field(default_factory=dict)

    def of_input(self, place: str) -> "FitSettings":
        """The settings for the input of the Linear `place`, with the shape of its code as `act_shape`."""
        return replace(self, act_shape=self.act_shapes.get(place, self.act_shape), act_shapes={})

    def divided(self) -> "Divided":
        """How the inputs of row-parallel Linears are divided."""
        return Divided.of(self.parts, self.weight_shape)

    @property
    def rotation_seed(self) -> int | None:
        """Seed of the rotation signs; None where nothing is rotated."""
        return None if self.rotation == "none" else self.seed
