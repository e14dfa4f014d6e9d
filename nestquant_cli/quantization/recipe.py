"""What to quantize and how: validated settings, from the command line or a YAML file."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NestQuantError
from ..lattice.code import MOST_MULTIPLIERS
from ..lattice.shape import CodeShape, shape_for_bits, shape_for_q
from ..tuning.settings import TuneSettings

SIXTEEN = 16.0  # bits that mean "leave alone"
METHODS = ("nestquant",)
ALLOCATIONS = ("uniform", "mixed")
_NOTHING = "nothing was quantized"


@dataclass(frozen=True)
class Recipe:
    """Settings of one quantization.

    Attributes:
        method: the codec.
        weight_bits, act_bits, kv_bits: 2 to 8 in eighths, or 16 to leave that part alone.
        weight_code, act_code, kv_code: {"q": …, "k": …} to choose the code by hand; None chooses it by bits.
        dataset, samples, seqlen: calibration text and how much of it.
        seed: of rotation signs, window sampling and fits.
        damping: added to the Hessian, as a fraction of its mean diagonal.
        allocation: "uniform" gives all matrices the same bits; "mixed" takes `weight_bits` for an average.
        tune: settings of `tuning.settings.TuneSettings` by name, {} for its defaults; None leaves the result untuned.

    Raises:
        NestQuantError: a setting is out of range or of the wrong type.
    """

    method: str = "nestquant"
    weight_bits: float = 4.0
    act_bits: float = 4.0
    kv_bits: float = 4.0
    weight_code: dict[str, int] | None = None
    act_code: dict[str, int] | None = None
    kv_code: dict[str, int] | None = None
    dataset: str = "wikitext2"
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    damping: float = 0.01
    allocation: str = "uniform"
    tune: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise NestQuantError(f"there is no method '{self.method}'", _NOTHING, f"use one of {', '.join(METHODS)}")
        for part in ("weight", "act", "kv"):
            self.shape(part)
        if all(self.shape(part) is None for part in ("weight", "act", "kv")):
            raise NestQuantError("weights, activations and KV cache are all left at 16 bits", _NOTHING, "give --bits")
        for name, low, high in (("samples", 1, 1 << 20), ("seqlen", 2, 1 << 20), ("seed", 0, (1 << 63) - 1)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise NestQuantError(
                    f"{name} {value} is not an integer from {low} to {high}", _NOTHING, f"correct {name}"
                )
        if not _is_number(self.damping) or not 0 < self.damping <= 1:
            raise NestQuantError(f"damping {self.damping} is not in (0, 1]", _NOTHING, "use 0.01 or so")
        if self.allocation not in ALLOCATIONS:
            known = ", ".join(ALLOCATIONS)
            raise NestQuantError(f"there is no allocation '{self.allocation}'", _NOTHING, f"use one of {known}")
        if self.allocation == "mixed" and self.weight_code is not None:
            raise NestQuantError("mixed rates choose the codes of weights", _NOTHING, "give no weight_code")
        if self.tune is not None:
            TuneSettings.from_dict(self.tune)
        if not isinstance(self.dataset, str) or not self.dataset:
            raise NestQuantError("dataset is not a name", _NOTHING, "use wikitext2, c4, demo or a .txt or .jsonl file")

    def shape(self, part: str) -> CodeShape | None:
        """The code of "weight", "act" or "kv"; None for 16 bits."""
        bits, code = getattr(self, f"{part}_bits"), getattr(self, f"{part}_code")
        if not _is_number(bits):
            raise NestQuantError(f"{part}_bits {bits!r} is not a number", _NOTHING, "use 2 to 8 in eighths, or 16")
        if bits == SIXTEEN:
            return None
        try:
            if code is None:
                return shape_for_bits(float(bits))
            if not isinstance(code, dict) or set(code) != {"q", "k"} or any(type(v) is not int for v in code.values()):
                raise ValueError(f"{part}_code {code} is not of the form {{q: 14, k: 4}}")
            if not 2 <= code["q"] <= 256 or not 1 <= code["k"] <= MOST_MULTIPLIERS:
                raise ValueError(f"q and k of {part}_code are {code}, not 2 to 256 and 1 to {MOST_MULTIPLIERS}")
            return shape_for_q(code["q"], code["k"])
        except ValueError as error:
            raise NestQuantError(
                str(error), _NOTHING, "use 2 to 8 in steps of 0.125, or 16 to leave a part alone"
            ) from error

    def tag(self) -> str:
        """Short name of the bits, as in `w4a4kv4`."""
        names = {"weight": "w", "act": "a", "kv": "kv"}
        parts = [name + f"{self.bits(part):g}" for part, name in names.items() if self.shape(part) is not None]
        return "".join(parts)

    def bits(self, part: str) -> float:
        """Bits per entry of a part's words, 16 where it is left alone."""
        shape = self.shape(part)
        return SIXTEEN if shape is None else shape.word_bits / 8

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def read_recipe(path: Path | None, overrides: dict[str, Any]) -> Recipe:
    """A recipe from a YAML file, with settings that win over it.

    Args:
        path: YAML mapping of Recipe's fields; None for the defaults.
        overrides: settings by name; None values are ignored. Bits given here also drop the file's code for that part.

    Raises:
        NestQuantError: the file is unreadable, has an unknown setting, or a setting is invalid.
    """
    settings = {} if path is None else _read_yaml(path)
    known = {field.name for field in dataclasses.fields(Recipe)}
    for name in settings:
        if name not in known:
            raise NestQuantError(f"{path} has an unknown setting '{name}'", _NOTHING, f"use {', '.join(sorted(known))}")
    for name, value in overrides.items():
        if value is not None:
            settings[name] = value
            if name.endswith("_bits"):
                settings.pop(name.replace("_bits", "_code"), None)
    return Recipe(**settings)


def with_tuning(recipe: Recipe, wanted: bool | None) -> Recipe:
    """The recipe with tuning or without; None leaves that to the recipe."""
    if wanted is None or wanted == (recipe.tune is not None):
        return recipe
    return dataclasses.replace(recipe, tune={} if wanted else None)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise NestQuantError(f"{path} cannot be read as YAML ({reason})", _NOTHING, "check the file") from error
    if not isinstance(value, dict):
        raise NestQuantError(f"{path} is not a YAML mapping", _NOTHING, "write lines such as 'weight_bits: 4'")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
