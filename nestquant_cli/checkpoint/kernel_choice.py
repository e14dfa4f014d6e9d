"""Which kernels a packed checkpoint runs with on a device, from its config.json; no tensor is read."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.errors import NestQuantError
from ..kernels import for_device
from ..kernels.table import TABLE
from ..models.device_choice import pick_device
from ..modules.explain import describe
from ..modules.inputs import InputQuantizer, padded_size
from ..modules.layout import Layout
from ..storage.files import read_json
from .read import open_checkpoint, read_layout


@dataclass(frozen=True)
class Product:
    """How some matrices of a checkpoint are multiplied.

    Attributes:
        resident: "packed" or "int8", the form of the weights in memory that is asked for.
        tokens: "1 token", "5 tokens and more" …
        matrices: number of matrices.
        way: what is multiplied.
    """

    resident: str
    tokens: str
    matrices: int
    way: str


@dataclass(frozen=True)
class KernelChoice:
    """The kernels of a checkpoint on a device.

    Attributes:
        device: type of the device.
        family: "reference", "cpu" or "gpu".
        operations: what computes each operation: "Numba", "Triton", "torch", or "unused".
        products: how its matrices are multiplied.
    """

    device: str
    family: str
    operations: dict[str, str]
    products: list[Product]

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return asdict(self)


def kernel_choice(folder: Path | str, device: str = "auto") -> KernelChoice:
    """The kernels that a packed checkpoint would run with.

    Args:
        folder: folder of the checkpoint.
        device: "auto" for the device that commands pick here, or a device of torch, which need not be there.

    Raises:
        NestQuantError: not a packed checkpoint, no such device, or NESTQUANT_KERNELS names kernels that it cannot run.

    Example:
        >>> kernel_choice("demo-w4", "cuda").operations["attend"]
        'torch'
    """
    folder = Path(folder)
    open_checkpoint(folder)
    where = _device(device)
    kernels, layout, dtype = for_device(where), read_layout(folder), _dtype(folder)
    operations = {name: operation.written_in(kernels.family) for name, operation in TABLE.items()}
    counts: Counter[tuple[str, str, str]] = Counter()
    for resident in ("packed", "int8"):
        for name in layout.linears:
            counts.update((resident, *item) for item in _ways(layout, name, resident, where, dtype).items())
        for table in (table for table in layout.tables.values() if table.head is not None or not table.embedding):
            source = InputQuantizer(padded_size(table.columns), layout.rotation_seed, None)
            counts.update((resident, *item) for item in describe(table.code, resident, where, dtype, source).items())
    products = [Product(resident, tokens, count, way) for (resident, tokens, way), count in counts.items()]
    return KernelChoice(where.type, kernels.family, operations, products)


def _ways(layout: Layout, name: str, resident: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    linear = layout.linears[name]
    learned = linear.input in layout.reflections  # which no kernel knows
    seed = None if learned else layout.seed_of(linear.input)
    code, parts = layout.inputs[linear.input], layout.parts.get(linear.input, 1)
    source = InputQuantizer(padded_size(linear.in_features), seed, code, parts=parts)
    return describe(linear.code, resident, device, dtype, source)


def _device(name: str) -> torch.device:
    try:
        return torch.device(pick_device() if name == "auto" else name)
    except RuntimeError as error:
        raise NestQuantError(f"torch knows no device '{name}'", "no kernels were listed", "use cpu or cuda") from error


def _dtype(folder: Path) -> torch.dtype:
    """The dtype of the model's activations, as transformers loads it."""
    config = read_json(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype")
    found = getattr(torch, str(name), torch.bfloat16)
    return found if isinstance(found, torch.dtype) else torch.bfloat16
