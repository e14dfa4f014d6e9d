"""What the last bits of sums depend on: the kind of the processor and the instructions that it computes with."""

import importlib.metadata
import os
import platform
from typing import Any

from .device import gpu_name

_VECTOR = ("avx", "fma", "f16c", "amx", "neon", "sve", "sme", "i8mm", "bf16", "dotprod", "fp16", "fullfp16")


def machine(device: str) -> dict[str, Any]:
    """What the last bits of a run's result depend on, JSON-ready.

    Args:
        device: torch device, such as "cpu" or "cuda:0".

    Returns:
        "device" (its type), "gpu" (name of the GPU, or None) and "processor", see `processor_kind`.
    """
    import torch

    where = torch.device(device)
    return {"device": where.type, "gpu": gpu_name(where), "processor": processor_kind()}


def processor_kind() -> dict[str, Any]:
    """What rounding on this processor depends on, JSON-ready, for the key that a resumed run has to match.

    A run must not be finished on a processor of another kind: its two halves would be rounded in two ways. The key has
    the machine's architecture, the vector instructions that torch uses, and the version and target of Numba, whose
    kernels are compiled for the processor at hand. Numba is not imported for it: a run on a GPU does without.
    """
    import torch
    from llvmlite import binding

    name = os.environ.get("NUMBA_CPU_NAME")  # these two replace what Numba finds on the machine
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if str(name).lower() == "generic" else None)
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    names = sorted(flag[1:] for flag in features.split(",") if flag.startswith("+") and flag[1:].startswith(_VECTOR))
    return {
        "machine": platform.machine(),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "numba": importlib.metadata.version("numba"),
        "target": name or binding.get_host_cpu_name(),
        "vectors": " ".join(names),
    }
