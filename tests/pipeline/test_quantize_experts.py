"""A mixture of experts from end to end: the budget changes no byte, the report has every expert's tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.manifest import REPORT
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.cli import console
from nestquant_cli.cli.experts import print_experts
from tests.expert_models import make_experts
from tests.families import load, logits, pack, random_ids, relative_error, save_model
from tests.parallel.test_team import torchrun


@pytest.fixture(scope="module")
def original(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_experts("qwen2_moe"), tiny_tokenizer_folder, tmp_path_factory.mktemp("moe") / "model")


def test_blocks_change_no_byte_and_every_expert_is_reported(
    original: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    bits: dict[str, Any] = {"weight_bits": 8.0, "act_bits": 8.0, "kv_bits": 8.0}
    whole = pack(original, tiny_text_file, tmp_path / "whole", **bits)
    blocks = pack(original, tiny_text_file, tmp_path / "blocks", budget=5 * 2 * 4 * 64**2, **bits)
    same_bytes(whole, blocks)
    matrices = json.loads((whole / REPORT).read_text(encoding="utf-8"))["matrices"]
    experts = {name: record for name, record in matrices.items() if "experts" in name}
    assert len(experts) == 2 * 8 * 2
    assert all(
        record["pooled"] == pytest.approx(1 / (1 + record["tokens"] / 32), abs=0.1) for record in experts.values()
    )
    assert not any("pooled" in record for name, record in matrices.items() if name not in experts)
    ids = random_ids(1, 32)
    assert relative_error(logits(load(whole), ids), logits(load(original), ids)) < 0.15


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    original: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pack(original, tiny_text_file, tmp_path / "whole")
    write = Output.write

    def interrupted(self: Output, part: int, *arguments: Any) -> None:
        if part == 1:
            raise KeyboardInterrupt
        write(self, part, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Output, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(original, tiny_text_file, tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()
    pack(original, tiny_text_file, tmp_path / "again")
    same_bytes(whole, tmp_path / "again")


@pytest.mark.slow
def test_two_processes_end_with_the_same_bytes(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    whole = pack(original, tiny_text_file, tmp_path / "whole")
    text = ["--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64, "--memory-budget", "50KB"]
    torchrun("quantize", original, "--bits", 4, *text, "--output", tmp_path / "double")
    same_bytes(whole, tmp_path / "double")


def same_bytes(one: Path, other: Path) -> None:
    """Compares the weights and the configuration of two checkpoints."""
    for path in [*sorted(one.glob("*.safetensors")), one / "config.json"]:
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_sequential_calibration_of_experts_is_refused(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match="experts share one"):
        pack(original, tiny_text_file, tmp_path / "no", act_bits=16.0, kv_bits=16.0, sequential=True)


def test_experts_with_few_tokens_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(console, "line", lines.append)
    records = {f"e.{n}": {"tokens": n, "pooled": 1 / (1 + n / 4)} for n in range(12)} | {"q": {"damping": 0.01}}
    print_experts(records)
    print_experts({"q": {}})
    assert len(lines) == 1
    assert lines[0].startswith("experts with few tokens: 4 of 12 matrices, 1 of them with none: e.0 (0), e.1 (1)")
