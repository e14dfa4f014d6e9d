"""The kernels of a device: each operation of the table as an attribute, looked up once."""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch

from ..base.errors import NestQuantError
from ..base.names import nearest
from .contract import Kernels
from .limits import LIMITS
from .table import FAMILIES, TABLE

SWITCH = "NESTQUANT_KERNELS"  # the environment variable that chooses a family whatever the device

logger = logging.getLogger("nestquant")


class DeviceKernels:
    """The operations of one family; what the family lacks is the reference's. Made by `for_device`.

    An operation is imported when it is first asked for and is an ordinary attribute from then on, so that a call costs
    what a call of the function itself costs.

    Attributes:
        kind: the type of the device, as torch names it.
        family: "reference", "cpu" or "gpu".
        limits: how much its kernels take at a time.
    """

    def __init__(self, kind: str, family: str) -> None:
        self.kind, self.family, self.limits = kind, family, LIMITS[family]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in TABLE:
            raise AttributeError(name)
        path = TABLE[name].own(self.family) or TABLE[name].reference
        if path is None:
            raise NotImplementedError(f"no kernel for {name} on {self.kind}")
        module, function = path.split(":")
        operation: Callable[..., Any] = getattr(import_module(f".{module}", __package__), function)
        setattr(self, name, operation)
        return operation

    def __reduce__(self) -> tuple[Callable[..., Kernels], tuple[str]]:
        return of_kind, (self.kind,)  # functions are looked up again in another process


def for_device(device: torch.device) -> Kernels:
    """The kernels for tensors on a device, as `contract` documents them.

    Args:
        device: device of the tensors.

    Returns:
        an object with every operation of the table as an attribute: the device's own where it has one, else the
        reference. The environment variable NESTQUANT_KERNELS chooses a family instead.

    Raises:
        NestQuantError: NESTQUANT_KERNELS names no family, or one that cannot run on the device.
    """
    return of_kind(device.type)


def has(device: torch.device, operation: str) -> bool:
    """Whether a device has a kernel of its own for an operation, so that not the reference computes it."""
    family = for_device(device).family
    return family != "reference" and TABLE[operation].own(family) is not None


def of_family(family: str) -> Kernels:
    """The kernels of a family whatever the device and NESTQUANT_KERNELS say, to compare families."""
    return cast(Kernels, DeviceKernels("cuda" if family == "gpu" else "cpu", family))


@cache
def of_kind(kind: str) -> Kernels:
    """`for_device` for a device type. Logs once which operations the reference computes, at level info if any."""
    family = _family(kind)
    fallen = [name for name, operation in TABLE.items() if operation.falls(family)]
    if fallen:
        logger.info("kernels for %s: %s; the reference computes %s", kind, family, ", ".join(fallen))
    elif kind != "meta":  # nothing is computed there
        logger.log(logging.DEBUG if family == kind else logging.INFO, "kernels for %s: %s", kind, family)
    return cast(Kernels, DeviceKernels(kind, family))


def _family(kind: str) -> str:
    """Numba serves the CPU, and Triton, which CUDA builds of torch bring along, serves CUDA."""
    chosen = os.environ.get(SWITCH, "")
    if chosen and kind != "meta":
        return _checked(chosen, kind)
    if kind == "cpu":
        return "cpu"
    return "gpu" if kind == "cuda" and find_spec("triton") is not None else "reference"


def _checked(family: str, kind: str) -> str:
    if family not in FAMILIES:
        raise NestQuantError(
            f"{SWITCH} is '{family}', which is no family of kernels", "nothing was computed", nearest(family, FAMILIES)
        )
    if family == "cpu" and kind != "cpu":
        raise NestQuantError(
            f"{SWITCH} is cpu, and tensors are on {kind}", "nothing was computed", "unset it, or set it to reference"
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if family == "gpu" and (find_spec("triton") is None or (kind != "cuda" and not interpreted)):
        raise NestQuantError(
            f"{SWITCH} is gpu, and Triton cannot run on {kind} here",
            "nothing was computed",
            "unset it, or set TRITON_INTERPRET=1 too for Triton's slow interpreter",
        )
    return family
