"""Freed blocks leave the process when asked to: without that its memory grows with every layer."""

import subprocess
import sys

PROGRAM = """
import ctypes, os, sys
from pathlib import Path

from nestquant_cli.base.memory import return_blocks, reuse_blocks

PAGE = os.sysconf("SC_PAGE_SIZE")
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

def freed():
    # bytes that leave the process when 256 MiB in blocks of 4 MiB are written to and freed
    blocks = [library.malloc(4 << 20) for _ in range(64)]
    for block in blocks:
        ctypes.memset(block, 1, 4 << 20)
    high = resident()
    for block in blocks:
        library.free(block)
    return high - resident()

with reuse_blocks():
    assert freed() < 30 << 22, "freed blocks are kept for the next ones"
    held = resident()
    return_blocks()
    assert held - resident() > 60 << 22, "and given back when asked for"
    freed()
    held = resident()
assert held - resident() > 60 << 22, "or at the end"
assert freed() > 40 << 22, "after which most of what is freed is given back"
"""


def test_freed_blocks_are_kept_until_they_are_given_back_and_only_where_asked_for() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
