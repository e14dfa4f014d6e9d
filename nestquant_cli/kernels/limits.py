"""How much the kernels of a device take at a time, as data."""

from dataclasses import dataclass

from .int8 import INSTRUCTIONS, TILES

UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Limits:
    """Limits of one family of kernels.

    Attributes:
        dot_tokens: most tokens of `product_one`; 0 where decoding first is the faster way for every number of tokens.
        rounded_dot_tokens: the same for tokens that are rounded, but not to int8, or meet a weight that is not int8.
        fused_tokens: most tokens for which `product_many` is faster than decoding first; 0 for none.
        integer_tokens: most tokens of `product`; 0 where there is no kernel that multiplies words and int8 tokens.
        joined_tokens: most tokens of `rotated_product`, and of each expert of `experts_product`; 0 for none.
        rounded_tokens: most bfloat16 tokens of `rotated_product`, which rounds them to 16 bits; 0 where it does not.
        integer_rows_tokens: most int8 tokens of `integer_rows`; 0 for none.
        int16_tokens: most bfloat16 tokens of `int16_product`; 0 for none.
        int16_pairs: most bfloat16 tokens of an expert, on average, of `experts_product`; 0 for none.
        queries: most queries of one key head that `attend` takes.
        lanes: rows times paths that fill a tile of the searches: pieces of rows are a multiple of this much.
    """

    dot_tokens: int = 0
    rounded_dot_tokens: int = 0
    fused_tokens: int = 0
    integer_tokens: int = 0
    joined_tokens: int = 0
    rounded_tokens: int = 0
    integer_rows_tokens: int = 0
    int16_tokens: int = 0
    int16_pairs: int = 0
    queries: int = UNLIMITED
    lanes: int = 1


LIMITS = {
    "reference": Limits(),
    # One token reads every word once; for two, decoding to int8 first is already faster. Int8 rows are multiplied
    # without converting the matrix up to four tokens, and with VNNI instructions bfloat16 ones by exact sums: up to 64
    # in one call with the rotation, beyond in two, so that all threads rotate. Int8 tokens take 0.4 to 0.6 of the time
    # of torch's own product for one, and with AMX at most 0.8 of it for any number. With AMX, a product of 512 tokens
    # of 16 bits takes half to nine tenths of the time of converting the matrix first, with 2,048 tokens as long;
    # experts with 64 tokens each two thirds, with 256 tokens more. Tiles of the search and of `attend` have 64 lanes.
    "cpu": Limits(
        dot_tokens=1,
        joined_tokens=4,
        rounded_tokens=64 if INSTRUCTIONS else 0,
        integer_rows_tokens=(UNLIMITED if TILES else 64) if INSTRUCTIONS else 0,
        int16_tokens=(1024 if TILES else 128) if INSTRUCTIONS else 0,
        int16_pairs=128 if INSTRUCTIONS else 0,
        queries=64,
        lanes=64,
    ),
    # By count of instructions (docs/kernels.md), never measured: up to 4 tokens the threads that decode a row sum its
    # products; up to 64 one tile holds all tokens, so that every word is decoded once.
    "gpu": Limits(dot_tokens=4, rounded_dot_tokens=4, fused_tokens=64, integer_tokens=UNLIMITED),
}
