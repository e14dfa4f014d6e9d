"""The device a command runs on."""

from ..base.errors import NestQuantError, first_line


def pick_device(device: str = "auto") -> str:
    """`device` after a check that it works here; "auto" is the GPU where there is one, else the CPU.

    Raises:
        NestQuantError: torch does not know the device, or it is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise NestQuantError(
            f"device '{device}' cannot be used here ({first_line(error)})",
            "nothing was done",
            "use cpu, or --device auto",
        ) from error
    return device
