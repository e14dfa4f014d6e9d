"""The operations that need speed, for each device, behind one table.

`reference` computes all of them in plain torch on any device, `cpu` in Numba, `gpu` in Triton. `table` says which
function computes an operation where; `contract` documents the operations. Nothing outside this package imports from
the three folders: `for_device(x.device).quantize(…)` is the fastest that runs there.
"""

from .contract import Kernels
from .device_kernels import for_device, has

__all__ = ["Kernels", "for_device", "has"]
