"""What every operation of the kernels takes and gives, whichever device computes it.

`kernels.table` says which function computes an operation on which device; `kernels.for_device` hands them out. The
classes here are the types that callers are checked against, and their docstrings are the documentation of the
operations: shapes, dtypes, and what is equal to the bit on every device.
"""

from typing import Protocol

from ..limits import Limits
from .codes import CodeKernels
from .heads import HeadKernels
from .inputs import InputKernels
from .products import ProductKernels
from .searches import SearchKernels


class Kernels(CodeKernels, SearchKernels, InputKernels, HeadKernels, ProductKernels, Protocol):
    """All operations for the tensors of one device.

    Attributes:
        family: "reference", "cpu" or "gpu", the folder that operations are taken from where it has them.
        limits: how much its kernels take at a time.
    """

    family: str
    limits: Limits
