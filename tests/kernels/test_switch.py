"""A model runs with one family of kernels alone: no Numba on a GPU, no Triton on a CPU, neither with the reference."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RUN = """
import sys

folder, *absent = sys.argv[1:]


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in absent:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)


sys.meta_path.insert(0, Absent())

import torch
from transformers import AutoModelForCausalLM

import nestquant_cli

model = AutoModelForCausalLM.from_pretrained(folder)
ids = torch.arange(1, 12)[None]
with torch.no_grad():
    logits = model(ids).logits
generated = model.generate(ids, max_new_tokens=4, do_sample=False)
assert torch.isfinite(logits).all() and generated.shape == (1, 15)
assert not [name for name in absent if name in sys.modules]
print(" ".join(f"{value:.3f}" for value in logits[0, -1, :4].tolist()))
"""


def run(folder: Path, family: str, *absent: str) -> list[float]:
    """Logits of a model that ran in a process of its own, where the modules `absent` cannot be imported."""
    environment = os.environ | {"NESTQUANT_KERNELS": family, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", RUN, str(folder), *absent]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(value) for value in done.stdout.split()[-4:]]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> list[float]:
    """Logits with the CPU's kernels, where there is no Triton, which torch itself imports if it is there."""
    return run(tiny_checkpoint, "", "triton")


def test_the_reference_imports_neither_numba_nor_triton(tiny_checkpoint: Path, expected: list[float]) -> None:
    assert run(tiny_checkpoint, "reference", "numba", "triton") == pytest.approx(expected, abs=0.05)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_of_a_gpu_import_no_numba(tiny_checkpoint: Path, expected: list[float]) -> None:
    assert run(tiny_checkpoint, "gpu", "numba") == pytest.approx(expected, abs=0.05)
