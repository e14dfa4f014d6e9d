"""Freed blocks leave the process: without that its memory grows with every layer."""

import subprocess
import sys

PROGRAM = """
import psutil, torch
from nestquant_cli.memory import return_large_blocks
return_large_blocks()
own = psutil.Process()
blocks = [torch.ones(1 << 20) for _ in range(64)]  # 4 MiB each
kept = blocks[-1]
high = own.memory_info().rss
del blocks
assert high - own.memory_info().rss > 60 * 4 * 2**20, (high, own.memory_info().rss)
"""


def test_large_blocks_are_given_back_at_once() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
