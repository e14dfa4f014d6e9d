"""The Triton kernels as the compiler for a GPU takes them: the interpreter accepts more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).parents[2] / "scripts" / "count_instructions.py"


@pytest.mark.skipif(sys.platform != "linux", reason="triton brings its assembler on Linux alone")
def test_kernels_compile_for_hopper_and_keep_blocks_in_registers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(SCRIPT.parents[1])}
    output = tmp_path / "counts.json"
    command = [sys.executable, str(SCRIPT), "--output", str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())["results"]
    assert len(results) == 5
    for name, counts in results.items():
        assert counts["spilled"] == 0, name
        assert 50 < counts["instructions"] < 300, name  # docs/kernels.md reckons with them
