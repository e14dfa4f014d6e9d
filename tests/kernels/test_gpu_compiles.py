"""The Triton kernels as the compiler for a GPU takes them: the interpreter accepts more."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "count_instructions.py"


@pytest.mark.skipif(sys.platform != "linux", reason="triton brings its assembler on Linux alone")
@pytest.mark.slow
def test_kernels_compile_for_hopper_and_keep_blocks_in_registers(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    output = tmp_path / "counts.json"
    command = [sys.executable, str(SCRIPT), "--output", str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())["results"]
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*`(\w+)`[^|]*\| (\d+) \| (\d+) \|", page, re.MULTILINE)
    documented = {name: (int(count), int(half)) for name, count, half in rows}
    assert len(documented) == len(results)  # the bounds on that page are drawn from these counts
    for name, counts in results.items():
        assert counts["spilled"] == 0, name
        found = counts["instructions"], counts["half_rate"]
        assert found == pytest.approx(documented[name.split(",")[0]], rel=0.05), name  # versions of triton differ
