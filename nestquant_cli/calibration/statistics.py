"""What one decoder layer's inputs look like: Hessians, activation noise, and the codes fitted to them.

For an input x (rotated) with rounding noise z:

    H = E[x xᵀ] per token,   J = diag(E[z z]) per token

J is kept as its diagonal: after the rotation the noise of a lattice is as good as white.

Where x is what comes out of quantized layers, and x₀ what the original model has in its place, there is also

    X = E[x₀ xᵀ] per token
"""

from dataclasses import dataclass

from torch import Tensor

from ..codecs.registry import fit_heads
from ..codecs.vectors import VectorCode
from ..codecs.weights import Shape
from ..modules.cache_codes import CacheCodes
from ..rotation.transform import rotation

NOISE_TOKENS = 4096  # tokens of a layer that are kept for fitting and for measuring the noise


@dataclass(frozen=True)
class InputStatistics:
    """One distinct input of a layer, in the rotated basis.

    Attributes:
        members: names of the Linears that take it, in the layer.
        hessian: (n, n) float32, E[x xᵀ] per token; n is padded to a multiple of 8. (n,) is a diagonal, which serves
            where nothing is fed back.
        noise: (n,) float32, E[z²] per token; zero where activations stay in 16 bits.
        code: code of the activations, or None.
        dead: channels of the input, before the rotation, that were zero on all calibration text.
        reflectors: (r, n) of a learned rotation, which the basis is behind; None without one.
        cross: (n, n) float32, E[x₀ xᵀ] per token with x₀ the input in the original model; None where that is x.
    """

    members: tuple[str, ...]
    hessian: Tensor
    noise: Tensor
    code: VectorCode | None
    dead: int = 0
    reflectors: Tensor | None = None
    cross: Tensor | None = None


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one decoder layer.

    Attributes:
        inputs: statistics of each input, by the name of the first Linear of the layer that takes it.
        cache: codes of keys and values, or None.
    """

    inputs: dict[str, InputStatistics]
    cache: CacheCodes | None


def fit_cache(
    sample: tuple[Tensor, Tensor], shape: Shape, seed: int, rotation_seed: int | None, centering: bool = False
) -> CacheCodes:
    """Codes of keys and values from samples (heads, vectors, head size) of both.

    Only keys may have centers: of the values' energy there is little in a center.
    """
    keys, values = (rotation(vectors.shape[-1], rotation_seed).apply(vectors) for vectors in sample)
    return CacheCodes(fit_heads(keys, shape, seed, centering), fit_heads(values, shape, seed, False))
