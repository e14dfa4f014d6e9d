"""The loss of a tuning: the KL divergence, over chunks, with its own gradient."""

import copy
from pathlib import Path

import pytest
import torch

from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.tuning import distill
from nestquant_cli.tuning.distill import Distillation
from tests.families import load, logits, make_model, pack, random_ids, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> Path:
    base = tmp_path_factory.mktemp("distill")
    save_model(make_model("llama"), tiny_tokenizer_folder, base / "model")
    return pack(base / "model", tiny_text_file, base / "packed")


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_loss_is_the_divergence_of_the_packed_model(
    folder: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "_CHUNK_BYTES", rows * 4 * 300)
    teacher, student = make_model("llama"), load(folder)
    windows = random_ids(2, 20)
    expected = torch.stack(
        [
            torch.nn.functional.kl_div(
                logits(student, ids[None])[0].log_softmax(-1),
                logits(teacher, ids[None])[0].log_softmax(-1),
                reduction="batchmean",
                log_target=True,
            )
            for ids in windows
        ]
    )
    found = Distillation(teacher, student, read_layout(folder)).score(windows)
    assert found == pytest.approx(float(expected.mean()), rel=1e-5)


def test_the_gradient_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "_CHUNK_BYTES", 3 * 4 * 50)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 50, generator=generator) for _ in range(2))
    own, other = (student.clone().requires_grad_(True) for _ in range(2))
    (2 * distill._Divergence.apply(own, teacher)).backward()
    exact = teacher.log_softmax(-1)
    (2 * (exact.exp() * (exact - other.log_softmax(-1))).sum(-1).mean()).backward()
    assert torch.allclose(own.grad, other.grad, atol=1e-6)


def test_a_model_does_not_diverge_from_itself(folder: Path) -> None:
    teacher = make_model("llama")
    distillation = Distillation(teacher, copy.deepcopy(teacher), read_layout(folder))
    distillation.layout.cache.clear()
    assert distillation.score(random_ids(2, 20)) == pytest.approx(0, abs=1e-6)
