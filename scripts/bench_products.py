"""Times dense products on this CPU: through float32 against torch's own, in one run, on matrices of known models.

    python scripts/bench_products.py [--tokens 1,8,64,2048] [--seconds 0.4] [--threads N]

int8: exact sums through float32 against torch._int_mm. bfloat16: through float32 against torch's linear. On a CPU with
instructions for them the package uses torch's products; a star marks its choice on this machine. "rows at once" is the
kernel that multiplies int8 tokens with int8 rows and scales the sums, against torch._int_mm with the same scales and
against torch's bfloat16 linear. The calls run in turns, and each result is that of the fastest.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from nestquant_cli.kernels import dense, for_device, int8
from nestquant_cli.kernels.reference import products as reference

SIZES = [
    (1536, 576),
    (576, 1536),
    (4096, 4096),
]  # rows and entries: up_proj, down_proj of SmolLM2-135M, q_proj of Llama-3-8B


def main() -> None:
    """Measures every size and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1,8,64,2048", help="numbers of tokens to multiply at once")
    parser.add_argument("--seconds", type=float, default=0.4, help="time for each measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title = f"billion operations/s, {options.threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    table = Table("matrix", "tokens", "product", "ours", "torch", "ratio of times", title=title)
    for rows, entries in SIZES:
        for tokens in map(int, options.tokens.split(",")):
            work = 2e-9 * tokens * rows * entries
            for dtype, own, torchs, chosen in products(tokens, rows, entries):
                ours, theirs = fastest((own, torchs), options.seconds)
                marks = ("*", "") if chosen else ("", "*")
                speeds = (f"{work / each:.1f}{mark}" for each, mark in zip((ours, theirs), marks, strict=True))
                table.add_row(f"{rows} × {entries}", str(tokens), dtype, *speeds, f"{ours / theirs:.3f}")
    Console().print(table)


def products(
    tokens: int, rows: int, entries: int
) -> list[tuple[str, Callable[[], object], Callable[[], object], bool]]:
    """For each dtype: the product through float32, the product of torch, and whether the package uses the first."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-34, 35, (tokens, entries), generator=generator, dtype=torch.int8)
    v = torch.randint(-34, 35, (rows, entries), generator=generator, dtype=torch.int8)
    x, weight = a.bfloat16(), v.bfloat16()
    kernels, few = for_device(a.device), tokens <= for_device(a.device).limits.integer_rows_tokens
    scaled = a, torch.ones(tokens), v, torch.ones(rows, dtype=torch.bfloat16).view(torch.int16), torch.bfloat16

    def at_once() -> object:
        return kernels.integer_rows(*scaled)

    return [
        ("int8 through float32", lambda: int8.float_sums(a, v), lambda: torch._int_mm(a, v.t()), not int8.INSTRUCTIONS),
        (
            "bfloat16 through float32",
            lambda: dense.in_float32(x, weight),
            lambda: F.linear(x, weight),
            dense.EMULATED and tokens >= dense.FEWEST_TOKENS,
        ),
        ("int8 rows at once, and scaled", at_once, lambda: reference.integer_rows(*scaled), few),
        ("int8 rows at once, bfloat16", at_once, lambda: F.linear(x, weight), few),
    ]


def fastest(calls: tuple[Callable[[], object], ...], seconds: float) -> list[float]:
    """Seconds of each call at its fastest. The calls run in turns until the time is up, at least twice."""
    best, end, turns = [float("inf")] * len(calls), time.perf_counter() + seconds * len(calls), 0
    while turns < 2 or time.perf_counter() < end:
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[number] = min(best[number], time.perf_counter() - start)
        turns += 1
    return best


if __name__ == "__main__":
    main()
