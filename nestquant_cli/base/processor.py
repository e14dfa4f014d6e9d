"""The kind of the processor: the instructions that sums are computed with, on which their last bits depend."""

import importlib.metadata
import os
import platform
from typing import Any

from .device import gpu_name

_VECTOR = ("avx", "fma", "f16c", "amx", "neon", "sve", "sme", "i8mm", "bf16", "dotprod", "fp16", "fullfp16")


def machine(device: str) -> dict[str, Any]:
    """Where a run computes, as far as the last bits of its result depend on it, JSON-ready; `device` is of torch."""
    import torch

    where = torch.device(device)
    return {"device": where.type, "gpu": gpu_name(where), "processor": processor_kind()}


def processor_kind() -> dict[str, Any]:
    """What rounding on this processor depends on, JSON-ready, for the keys of runs.

    Half a run must not be finished on a processor of another kind: the two halves would be rounded in two ways. It is
    the machine's architecture, the instructions that torch takes, and version and target of Numba, whose kernels are
    compiled for the very processor. Numba is not imported for that, as a run on a GPU does without it.
    """
    import torch
    from llvmlite import binding

    name = os.environ.get("NUMBA_CPU_NAME")  # these two replace what Numba finds on the machine
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if str(name).lower() == "generic" else None)
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    names = sorted(each[1:] for each in features.split(",") if each.startswith("+") and each[1:].startswith(_VECTOR))
    return {
        "machine": platform.machine(),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "numba": importlib.metadata.version("numba"),
        "target": name or binding.get_host_cpu_name(),
        "vectors": " ".join(names),
    }
