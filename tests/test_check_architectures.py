"""The script that takes tiny models of every architecture through nestquant: one of each structure, all if asked."""

from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.cli import console
from scripts.architectures.configurations import all_cases
from scripts.architectures.run import in_this_process, run_case
from scripts.architectures.text import LICENSE
from scripts.architectures.verdicts import NOT_RUN, REFUSED, WHOLE, WORKS, Verdict

# One of each structure, with the share of the matrices' entries in its decoder layers that is quantized at least.
STRUCTURES = {
    "llama": 1.0,  # dense
    "mixtral": 0.99,  # experts, each a Linear in two stacked matrices; its router is small
    "gpt_oss": 0.9,  # experts that are stored transposed and interleaved, with biases
    "llama4_text": 0.9,  # experts in batched products, and a shared one
    "jetmoe": 0.9,  # experts in the attention, too
    "qwen3_5_text": 0.9,  # gated DeltaNet beside attention
    "mamba2": 0.9,  # states and no keys
    "lfm2": 0.9,  # short convolutions beside attention
    "zamba2": 0.9,  # a layer of attention that several places share
    "gpt2": 1.0,  # Conv1D
    "gemma3n_text": 0.8,  # inputs of each layer, shared keys
    "bart": 0.6,  # cross-attention that nothing calls
    "gemma3": 1.0,  # answers images
}


def _row(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(console, "configure", lambda debug, quiet, form: None)
    return run_case(name, folder, LICENSE, in_this_process)


@pytest.mark.parametrize("name", STRUCTURES)
def test_each_structure_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _row(name, tmp_path, monkeypatch)
    verdict = Verdict.of(row)
    assert (verdict.outcome, verdict.defects) == (WHOLE, []), verdict
    loaded = row["loaded"]
    assert loaded["entries"] + sum(loaded["left"].values()) == loaded["original_entries"]
    assert loaded["entries"] >= STRUCTURES[name] * loaded["original_entries"], loaded["left"]
    assert ("image" in row["eight"]) == row["built"]["images"]


@pytest.mark.architectures
@pytest.mark.parametrize("name", all_cases())
def test_every_architecture_works_or_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict.of(_row(name, tmp_path, monkeypatch))
    assert verdict.outcome in (*WORKS.values(), REFUSED, NOT_RUN), verdict
    assert not verdict.defects
