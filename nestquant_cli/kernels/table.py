"""Which function computes each operation, for the reference and on each device: the data that `for_device` reads.

`contract` documents the operations. docs/kernels.md has this table too, written by scripts/make_kernels_table.py.
"""

from typing import NamedTuple

FAMILIES = ("reference", "cpu", "gpu")
WRITTEN_IN = {"reference": "torch", "cpu": "Numba", "gpu": "Triton"}


class Operation(NamedTuple):
    """Functions that compute one operation, each as "module:function" within this package.

    Attributes:
        reference: in plain torch, on any device.
        cpu: compiled by Numba, for CPU tensors; None where the reference serves the CPU, too.
        gpu: written in Triton, for CUDA tensors; None where the reference serves the GPU, too.
        limits: what a kernel leaves to other operations or to torch, in words.
    """

    reference: str | None
    cpu: str | None = None
    gpu: str | None = None
    limits: str = ""

    def own(self, family: str) -> str | None:
        """The function that a family has itself, None where it falls to the reference."""
        function: str | None = getattr(self, family)
        return function


TABLE = {
    # Nested codes.
    "quantize": Operation("reference.nested:quantize", "cpu.nested:quantize", "gpu.nested:quantize"),
    "pack": Operation(
        "reference.nested:pack",
        "cpu.nested:pack",
        "gpu.nested:pack",
        "gpu: words that are not 32 bits wide are put back to back by torch",
    ),
    "unpack": Operation("reference.nested:unpack", "cpu.nested:unpack", "gpu.unpack:unpack"),
    "multiplier_indices": Operation("reference.nested:multiplier_indices", "cpu.nested:multiplier_indices"),
    "block_errors": Operation("reference.nested:block_errors", "cpu.nested:block_errors", "gpu.nested:block_errors"),
    # Searches over whole rows, and lattices.
    "search_nested_panel": Operation("reference.nested_beam:search_panel", "cpu.search:search_nested_panel"),
    "search_lattice_panel": Operation("reference.lattice_beam:search_panel", "cpu.search:search_lattice_panel"),
    "decode_lattices": Operation("reference.lattice_decode:decode", "cpu.search:decode_lattices"),
    # Tokens.
    "rotates": Operation("reference.inputs:rotates", "cpu.inputs:rotates"),
    "rotate_tokens": Operation("reference.inputs:rotate_tokens", "cpu.inputs:rotate"),
    "encode_tokens": Operation(
        "reference.inputs:encode_tokens",
        "cpu.inputs:encode",
        "gpu.inputs:encode_tokens",
        "gpu: torch rotates, the kernel rounds",
    ),
    "to_grid": Operation("reference.grid:to_grid", "cpu.inputs:to_grid"),
    "fingerprint": Operation("reference.inputs:fingerprint", "cpu.inputs:fingerprint"),
    # The packed cache.
    "encode_heads": Operation(
        "reference.heads:encode_heads",
        "cpu.cache:encode",
        "gpu.heads:encode_heads",
        "gpu: torch rotates, the kernels round and pack",
    ),
    "decode_heads": Operation(
        "reference.heads:decode_heads",
        "cpu.cache:decode",
        "gpu.heads:decode_heads",
        "gpu: the kernel reads words, torch rotates back",
    ),
    "attend": Operation("reference.heads:attend", "cpu.cache:attend"),
    # Products.
    "integer_product": Operation("int8:integer_product", limits="torch's own products of int8 on every device"),
    "scale_sums": Operation("reference.products:scale_sums", "cpu.inputs:scaled"),
    "rotated_product": Operation("reference.products:rotated_product", "cpu.product:rotated_product"),
    "product": Operation("reference.products:product", None, "gpu.product:product", "int8 codes"),
    "product_one": Operation("reference.products:product_one", "cpu.product:product_one", "gpu.product:product_one"),
    "product_many": Operation(
        "reference.products:product_many", None, "gpu.product:product_many", "int8 codes, 16-bit activations"
    ),
}
