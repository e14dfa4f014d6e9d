"""Settings of one quantization, validated, from the command line, a YAML file or Python."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import refuse_unknown
from ..codecs.integer.code import IntegerCode
from ..codecs.integer.codec import IntegerCodec
from ..codecs.nested.codec import NestedCodec
from ..codecs.registry import CODECS, shape_of
from ..codecs.weights import Shape
from .recipe_checks import NOTHING, check_cache, check_combinations, check_paths, check_settings, is_number

SIXTEEN = 16.0  # bits that mean "leave alone"
TABLES = ("embedding", "head")
FEWEST_TABLE_BITS = 4.0
BYTE = 8.0  # bits of activations that processors multiply as they are
# Settings that are left out where they have these values.
_RARE = {
    "channel_scales": False,
    "key_scales": False,
    "key_bits": None,
    "value_bits": None,
    "kv_skip_layers": None,
    "kv_window": 0,
    "kv_sinks": 0,
    "act_method": None,
    "drift_correction": None,
    "residual_correction": None,
    "all_experts": False,
    "tensor_parallel": 1,
    "act_allocation": "uniform",
    "tie_inputs": False,
    "embedding_bits": 16.0,
    "head_bits": 16.0,
    "output_metric": "none",
}
_OF_CACHE = {"kv": "key_bits", "value": "value_bits"}  # what wins over `kv_bits`


@dataclass(frozen=True)
class Recipe:
    """Settings of one quantization.

    Attributes:
        method: the codec, "nestquant", "integer" or "glvq", which is for weights alone.
        weight_bits, act_bits, kv_bits: 2 to 8 in eighths, or 16 to leave that part alone.
        key_bits, value_bits: bits of keys and of values where they are not `kv_bits`; None where they are.
        kv_skip_layers: numbers of layers whose keys and values stay in 16 bits, separated by commas, from 0 on, or from
            -1 on backwards; None for no layer.
        kv_window, kv_sinks: number of the most recent tokens, its own included, and of the first ones whose keys and
            values a token sees in 16 bits.
        act_method: the codec of activations, "nestquant" or "integer". None is `method`, and at 8 bits "integer" unless
            `act_code` is another's. A nested code of 8 bits has values beyond int8, so its products are no int8 ones:
            W4A8 took twice the time for each token, with KL 0.0858 instead of 0.0853.
        weight_code, act_code, kv_code: the code by hand: {"q": …, "k": …} of nestquant; of integer any of "symmetric",
            "group" (entries that share a scale; null is the row, token or head) and "clip" ("mse", or a fraction of the
            largest entry); of glvq any of "dimension", "group", "shared" and "companding". None chooses nestquant's
            by bits, symmetric integers of least squared error, and glvq's defaults.
        rotation: rotation of inputs, keys and values: "none", "hadamard", or "learned", which adds reflections learned
            on calibration text to the inputs of Linears.
        reflections: number of reflections of a learned rotation.
        feedback: "ldlq" feeds rounding errors of weights back (with integers that is GPTQ), "none" rounds plainly.
        paths: K of the K-best search over the rows of a weight, 1 to 64; 1 is LDLQ, which keeps one choice for all
            columns so far. None is 8 for nested codes of weights alone, which took KL from 0.064 to 0.060 at W4, and
            1 behind rounded activations, whose noise hides the gain (KL 0.185 and 0.182).
        qa: whether weights are made for the rounded input (QA-LDLQ), or for the unrounded one.
        centering: whether nested codes of activations and keys may subtract a common center. On by default: W4A4KV4
            went from perplexity 24.80 to 23.58 for 0.004 bits a weight.
        channel_scales: whether inputs that are rounded have factors of their channels (`calibration.channel_scales`).
        key_scales: whether keys have factors of their channels in front of the rotation (`calibration.key_scales`).
        sequential: whether each matrix is calibrated after the ones before it are quantized, and corrects their errors.
            W4 with one path went from perplexity 21.04 to 20.82.
        drift_correction: how much of them a sequential calibration corrects, from 0 (nothing: a matrix is made for the
            inputs that it will get) to 1. None is 1, and 0.5 with rounded activations (W4A4KV4, 8 × 1,024 tokens, one
            path: KL 0.189, and 0.202 where calibration is not sequential).
        residual_correction: how much of the residual stream's error a sequential calibration corrects in the matrices
            that are added to it, from 0 (nothing) to 1. None is 0: 0.5 had no measurable effect beside factors of
            channels (W4A4KV4, 8 × 1,024 tokens, one path: KL 0.157 and 0.156).
        all_experts: whether experts are calibrated on every token, instead of those that the router sends them. The
            statistics of a layer then take as many products for a token as it has experts.
        tensor_parallel: number of processes that are to share the checkpoint's matrices in tensor parallel. The inputs
            of row-parallel matrices are then rotated and rounded in so many parts, each by itself.
        dataset, samples, seqlen: calibration text, number of windows and tokens in a window. 128 windows instead of 32
            had no measurable effect at W4. Text of C4 is a little better on C4, wikitext-2 on wikitext-2.
        text_field: field of the data set's records with the text; None takes "text", or else "messages".
        bos: what calibration windows begin with: "default", "each" or "none" (`calibration.windows.window_start`).
        seed: seed of rotation signs, window sampling and fits.
        damping: what is added to the diagonal of the Hessian, as a fraction of its mean. 1e-3 made no difference.
        embedding_bits, head_bits: bits of the embedding and of the output head; one matrix that is both has one code.
            8 for integers with a scale a row, 4 to less than 8 in eighths for nested codes, 16 to leave it alone.
        output_metric: "two-sided" feeds rounding errors from row to row of a weight, too (`pipeline.output_gradients`).
        allocation: "uniform" gives all matrices the same bits; "mixed" takes `weight_bits` for an average.
        act_allocation: the same for activations: "mixed" takes `act_bits` for an average over the inputs.
        tie_inputs: whether mixed rates give matrices with the same input (q, k and v; gate and up) the same bits.
        tune: settings of `tuning.settings.TuneSettings` by name, {} for its defaults; None leaves the result untuned.

    Raises:
        NestQuantError: a setting is out of range or of the wrong type.

    Example:
        >>> Recipe(weight_bits=3.5, act_bits=16, kv_bits=16).tag()
        'w3.5'
    """

    method: str = "nestquant"
    weight_bits: float = 4.0
    act_bits: float = 4.0
    kv_bits: float = 4.0
    key_bits: float | None = None
    value_bits: float | None = None
    kv_skip_layers: str | None = None
    kv_window: int = 0
    kv_sinks: int = 0
    act_method: str | None = None
    weight_code: dict[str, Any] | None = None
    act_code: dict[str, Any] | None = None
    kv_code: dict[str, Any] | None = None
    dataset: str = "wikitext2"
    samples: int = 128
    seqlen: int = 2048
    text_field: str | None = None
    bos: str = "default"
    seed: int = 0
    damping: float = 0.01
    rotation: str = "hadamard"
    reflections: int = 16
    feedback: str = "ldlq"
    paths: int | None = None
    qa: bool = True
    centering: bool = True
    channel_scales: bool = False
    key_scales: bool = False
    sequential: bool = False
    drift_correction: float | None = None
    residual_correction: float | None = None
    all_experts: bool = False
    tensor_parallel: int = 1
    embedding_bits: float = SIXTEEN
    head_bits: float = SIXTEEN
    output_metric: str = "none"
    allocation: str = "uniform"
    act_allocation: str = "uniform"
    tie_inputs: bool = False
    tune: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_settings(vars(self))
        for part in ("weight", "act", "kv", "value"):
            self.shape(part)
        for part in TABLES:
            self.table_shape(part)
        check_cache(vars(self), [self.shape(part) is not None for part in _OF_CACHE])
        if all(self.shape(part) is None for part in ("weight", "act", "kv")):
            raise NestQuantError("weights, activations and KV cache are all left at 16 bits", NOTHING, "give --bits")
        self._check_sequential()
        check_paths(vars(self))
        check_combinations(vars(self))

    def _check_sequential(self) -> None:
        if self.sequential and self.shape("weight") is None:
            cause = "a sequential calibration follows quantized weights, and weights are left at 16 bits"
            raise NestQuantError(cause, NOTHING, "leave sequential out, or give weight_bits")

    @property
    def search_paths(self) -> int:
        """K of the search over rows: `paths`, or the codec's default with or without rounded activations."""
        if self.paths is not None:
            return self.paths
        plain = self.feedback == "none" or self.shape("act") is not None
        return CODECS[self.method].plain_paths if plain else CODECS[self.method].paths

    @property
    def scales_channels(self) -> bool:
        """Whether inputs have factors of their channels: `channel_scales`, where inputs are rotated and rounded."""
        return self.channel_scales and self.rotation != "none" and self.shape("act") is not None

    def codec(self, part: str) -> str:
        """Name of the codec of "weight", "act", "kv" or "value"."""
        if part != "act":
            return self.method
        if self.act_method is not None:
            return self.act_method
        settings = self.act_code if isinstance(self.act_code, dict) else ()
        integers = self.act_bits == BYTE and set(settings) <= set(IntegerCodec.settings)
        return IntegerCodec.name if integers else self.method

    def shape(self, part: str) -> Shape | None:
        """The code of "weight", "act", "kv", which is that of keys, or "value"; None for 16 bits."""
        part, setting = "kv" if part == "value" else part, _OF_CACHE.get(part, "")
        if not setting or getattr(self, setting) is None:
            setting = f"{part}_bits"
        bits, code = getattr(self, setting), getattr(self, f"{part}_code")
        if not is_number(bits):
            raise NestQuantError(f"{setting} {bits!r} is not a number", NOTHING, "use 2 to 8 in eighths, or 16")
        if bits == SIXTEEN:
            return None
        name = self.codec(part)
        if isinstance(code, dict):
            refuse_unknown(code, CODECS[name].settings, f"{part}_code", NOTHING)
        try:
            return shape_of(name, float(bits), code, part)
        except ValueError as error:
            raise NestQuantError(
                str(error), NOTHING, f"use {CODECS[name].remedy}, or 16 to leave a part alone"
            ) from error

    def table_shape(self, part: str) -> Shape | None:
        """The code of "embedding" or "head"; None for 16 bits."""
        bits = getattr(self, f"{part}_bits")
        if is_number(bits) and bits == SIXTEEN:
            return None
        if not is_number(bits) or not FEWEST_TABLE_BITS <= bits <= BYTE or bits * 8 != int(bits * 8):
            raise NestQuantError(f"{part}_bits {bits!r} are not there", NOTHING, "use 4 to 8 in eighths, or 16")
        return IntegerCode(8, clip=1.0) if bits == BYTE else shape_of(NestedCodec.name, float(bits), None, "weight")

    def tag(self) -> str:
        """Short name of the bits, as in `w4a4kv4`, or `w4e8h8` with an embedding and a head of 8 bits."""
        same = self.shape("kv") == self.shape("value")
        names = {"weight": "w", "act": "a"} | ({"kv": "kv"} if same else {"kv": "k", "value": "v"})
        shapes = {name: self.shape(part) for part, name in names.items()}
        parts = [name + f"{shape.word_bits / 8:g}" for name, shape in shapes.items() if shape is not None]
        return "".join(parts) + "".join(f"{part[0]}{bits:g}" for part, bits in self.table_bits().items())

    @property
    def wants_tables(self) -> tuple[bool, bool]:
        """Whether the embedding is to be quantized, and whether the head is."""
        return self.embedding_bits != SIXTEEN, self.head_bits != SIXTEEN

    def table_bits(self) -> dict[str, float]:
        """Bits of the embedding and the head, by "embedding" and "head"; without those that stay in 16 bits."""
        bits = {part: float(getattr(self, f"{part}_bits")) for part in TABLES}
        return {part: each for part, each in bits.items() if each != SIXTEEN}

    def bits(self, part: str) -> float:
        """Bits per entry of a part's words, 16 where it is left alone; of "kv" the mean of keys and values."""
        shapes = [self.shape(each) for each in (("kv", "value") if part == "kv" else (part,))]
        return sum(SIXTEEN if shape is None else shape.word_bits / 8 for shape in shapes) / len(shapes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; settings that few models have a use for are there where they are set."""
        settings = dataclasses.asdict(self)
        return {name: value for name, value in settings.items() if name not in _RARE or value != _RARE[name]}


def names() -> tuple[str, ...]:
    """The settings of a recipe."""
    return tuple(field.name for field in dataclasses.fields(Recipe))
