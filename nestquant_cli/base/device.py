"""What the package asks a device itself: whether it is the CPU, its memory, its name, and to wait for it.

Which kernels serve a device is another question, and `kernels.for_device` answers it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def on_host(device: "torch.device") -> bool:
    """Whether torch's own threads compute on the device, so that work is shared by cutting it into pieces."""
    return device.type == "cpu"


def free_memory(device: "torch.device") -> int:
    """Bytes free on a device; what else the machine could give up for us counts as free."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def device_name(device: "torch.device") -> str:
    """The device as a protocol states it, with the name of the GPU: "cuda:0 (NVIDIA H200)", "cpu"."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def synchronize(device: "torch.device") -> None:
    """Waits until a device has done what it was given; the CPU has by then."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
