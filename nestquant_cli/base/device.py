"""What the package asks a device itself: whether torch's threads serve it, its memory, its name, and to wait for it.

Which kernels serve a device is another question, and `kernels.for_device` answers it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def on_host(device: "torch.device") -> bool:
    """Whether torch's own threads compute on the device: the CPU, where work is cut into pieces that threads share."""
    return device.type == "cpu"


def threads_of(device: "torch.device") -> int:
    """Pieces of work that compute on a device at the same time: torch's threads on the CPU, else 1."""
    import torch

    return torch.get_num_threads() if on_host(device) else 1


def free_memory(device: "torch.device") -> int:
    """Bytes free on a device; what else the machine could give up for us counts as free."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def peak_memory(device: "torch.device") -> int:
    """The most bytes that were in use so far: of a GPU, else of the process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_name(device: "torch.device") -> str | None:
    """What a GPU calls itself, "NVIDIA H200"; None for another device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def device_name(device: "torch.device") -> str:
    """The device as a protocol states it, with the name of a GPU: "cpu", "cuda:0 (NVIDIA H200)"."""
    gpu = gpu_name(device)
    return str(device) if gpu is None else f"{device} ({gpu})"


def synchronize() -> None:
    """Waits until the current GPU has done what it was given; returns at once where there is none."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
