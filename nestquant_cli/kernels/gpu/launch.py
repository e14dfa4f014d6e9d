"""What every launch of a Triton kernel needs: the constants of a code, words as the kernels read them, the device."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from ...e8.code import NestedCode


@lru_cache(maxsize=256)
def tables(code: NestedCode, device: torch.device) -> tuple[Tensor, Tensor]:
    """The multipliers, and the largest |u| under each plus a half: (k,) float32 each."""
    bounds = [code.limit // m + 0.5 for m in code.multipliers]
    return (
        torch.tensor(code.multipliers, dtype=torch.float32, device=device),
        torch.tensor(bounds, dtype=torch.float32, device=device),
    )


def word_rows(packed: Tensor, code: NestedCode) -> tuple[Tensor, int]:
    """Rows of words as `words.read_words` takes them, and the elements of a row."""
    packed = packed.contiguous()
    if code.word_bits == 32:
        if packed.storage_offset() % 4 or packed.stride(0) % 4:  # a single row may have any stride
            packed = packed.clone(memory_format=torch.contiguous_format)
        packed = packed.view(torch.int32)
    return packed, packed.shape[1]


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one, which is where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
