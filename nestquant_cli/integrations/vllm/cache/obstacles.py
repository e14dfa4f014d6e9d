"""Why the keys and values of a layer cannot be packed, in words.

Layers are judged by what they are, not by the name of their model. Whatever this does not know for sure is an obstacle.
"""

from typing import Any

from ....e8.code import BLOCK
from ....modules.cache_codes import CacheCodes


def obstacle(layer: Any, codes: CacheCodes | None) -> str | None:
    """What stands against packing the cache of an attention layer of vLLM; None where nothing does.

    Args:
        layer: vLLM's `Attention`, as it is made: with its `impl`.
        codes: codes of its keys and values.
    """
    if codes is None:
        return "it has no codes"
    known = {
        "it reads the keys and values of another layer": layer.kv_sharing_target_layer_name is not None,
        "it is not the attention of a decoder to what came before": layer.attn_type != "decoder",
        f"--kv-cache-dtype {layer.kv_cache_dtype} asks for another cache": layer.kv_cache_dtype != "auto",
        "it has attention sinks": getattr(layer.impl, "sinks", None) is not None,
        "it has ALiBi slopes": getattr(layer.impl, "alibi_slopes", None) is not None,
        "its scores are soft-capped": bool(getattr(layer.impl, "logits_soft_cap", None)),
        "tokens of images see each other in both directions": layer.use_mm_prefix,
        f"its head size is no multiple of {BLOCK}": bool(layer.head_size % BLOCK or layer.head_size_v % BLOCK),
    }
    return next((text for text, there in known.items() if there), None)


def codes_of_rank(codes: CacheCodes, heads: int, rank: int, ranks: int, sizes: tuple[int, int]) -> CacheCodes | None:
    """The codes of the key heads that one rank of tensor parallelism has.

    Heads are split evenly; where there are more ranks than heads, several ranks have the same one.

    Args:
        codes: codes of the keys and values of all heads.
        heads: key heads of the rank.
        rank, ranks: which rank it is, of how many.
        sizes: entries of a key and of a value.

    Returns:
        the codes; None where centers or factors are of another number of heads or of another size: some classes of
        transformers, such as that of Falcon, keep a key once for each of its queries.
    """
    for total in (heads * ranks, *(n for n in range(1, ranks) if heads == 1 and ranks % n == 0)):
        if codes.keys.fits(total, sizes[0]) and codes.values.fits(total, sizes[1]):
            first = rank * heads if total == heads * ranks else rank // (ranks // total)
            return CacheCodes(*(code.of_heads(first, first + heads) for code in (codes.keys, codes.values)))
    return None
