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
        unused: families whose devices go another, faster way, so that nothing asks them for the operation.
    """

    reference: str | None
    cpu: str | None = None
    gpu: str | None = None
    limits: str = ""
    unused: tuple[str, ...] = ()

    def own(self, family: str) -> str | None:
        """The function that a family has itself, None where it falls to the reference."""
        function: str | None = getattr(self, family)
        return function

    def falls(self, family: str) -> bool:
        """Whether the reference computes it where a family's kernels are used."""
        return family != "reference" and self.own(family) is None and family not in self.unused

    def written_in(self, family: str) -> str:
        """What computes it with a family: "Numba", "Triton", "torch", or "unused"."""
        if family in self.unused:
            return "unused"
        path = self.own(family) or self.reference or ""
        return WRITTEN_IN.get(path.partition(".")[0], WRITTEN_IN["reference"])


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
    "rotates": Operation("reference.inputs:rotates", "cpu.inputs:rotates", "reference.inputs:rotates"),
    "rotate_tokens": Operation("reference.inputs:rotate_tokens", "cpu.inputs:rotate"),
    "encode_tokens": Operation(
        "reference.inputs:encode_tokens",
        "cpu.inputs:encode",
        "gpu.inputs:encode_tokens",
        "gpu: torch rotates, the kernel rounds",
    ),
    "to_integers": Operation("reference.integers:to_integers", "cpu.inputs:to_integers"),
    "to_grid": Operation("reference.grid:to_grid", "cpu.inputs:to_grid"),
    "to_int16": Operation("reference.int16:to_int16", "cpu.int16_tensors:to_int16"),
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
    "attend_pages": Operation("reference.heads:attend_pages", "cpu.cache:attend_pages"),
    # Products.
    "integer_product": Operation(*3 * ("int8:integer_product",), limits="torch's own"),
    "scale_sums": Operation("reference.products:scale_sums", "cpu.inputs:scaled"),
    "integer_rows": Operation("reference.products:integer_rows", "cpu.product:integer_rows", unused=("gpu",)),
    "rotated_product": Operation("reference.products:rotated_product", "cpu.product:rotated_product", unused=("gpu",)),
    "int16_product": Operation("reference.int16:int16_product", "cpu.int16_tensors:int16_product"),
    "experts_product": Operation("reference.products:experts_product", "cpu.product:experts_product", unused=("gpu",)),
    "experts_sum": Operation("reference.products:experts_sum", "cpu.product:experts_sum"),
    "product": Operation("reference.products:product", None, "gpu.product:product", "int8 codes", unused=("cpu",)),
    "product_one": Operation("reference.products:product_one", "cpu.product:product_one", "gpu.product:product_one"),
    "product_many": Operation(
        "reference.products:product_many", None, "gpu.product:product_many", "int8 codes", unused=("cpu",)
    ),
}
