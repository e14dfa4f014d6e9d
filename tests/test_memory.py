"""Freed blocks leave the process when asked to: without that its memory grows with every layer."""

import subprocess
import sys

PROGRAM = """
import psutil, torch
from nestquant_cli.memory import return_blocks, reuse_blocks
reuse_blocks()
own = psutil.Process()
blocks = [torch.ones(1 << 20) for _ in range(64)]  # 4 MiB each
kept = blocks[-1]
high = own.memory_info().rss
del blocks
assert high - own.memory_info().rss < 30 * 4 * 2**20, "freed blocks are kept for the next ones"
return_blocks()
assert high - own.memory_info().rss > 60 * 4 * 2**20, (high, own.memory_info().rss)
"""


def test_freed_blocks_are_kept_until_they_are_given_back() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
