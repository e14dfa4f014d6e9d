"""Gradients at outputs: their metric, and two-sided rounding from end to end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.current_window import in_window
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.evaluation.divergence import divergence
from nestquant_cli.models.source import resolve
from nestquant_cli.parallel.team import Team
from nestquant_cli.pipeline import output_gradients
from nestquant_cli.pipeline.estimate import across_operations, backward_operations
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.output_gradients import OutputGradients, refuse_metric
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from tests.expert_models import make_experts
from tests.families import gaussian, load, logits, pack, random_ids, save_model

TWO_SIDED: dict[str, Any] = {"weight_bits": 3, "act_bits": 16, "kv_bits": 16, "output_metric": "two-sided"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    output = tmp_path_factory.mktemp("two-sided") / "packed"
    return pack(tiny_model_folder, tiny_text_file, output, **TWO_SIDED)


def test_each_token_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, parts = OutputGradients(0, None), {"a": gaussian(2, 7, 5), "b": gaussian(2, 7, 3, seed=1)}
    parts["a"][0, 0] = parts["b"][0, 0] = 0
    for window in (1, 0):
        with in_window(window):
            for name, g in parts.items():
                gradients.take(name, g[window][None])
    g = torch.cat([part.bfloat16().double() for part in parts.values()], -1).flatten(0, 1)[1:]
    g /= g.norm(dim=1, keepdim=True)
    rows = {"a": 5, "b": 3}
    (found,) = gradients.metrics(rows)
    torch.testing.assert_close(found.double(), g.t() @ g, rtol=1e-5, atol=1e-5)
    (other,) = gradients.metrics({"b": 3, "unused": 2})
    assert other[:3, :3].any() and not other[3:].any() and not other[:, 3:].any()
    gradients.take("c", torch.tensor([[[1.0, torch.inf]]]))
    with pytest.raises(NestQuantError, match="outputs of c have NaN"):
        next(gradients.metrics({"c": 2}))
    monkeypatch.setattr(output_gradients, "STACKED", 7)
    assert [len(metric) for metric in gradients.metrics(rows)] == [5, 3]


def test_the_checkpoint_is_sound_and_nearer_to_the_model(
    folder: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    assert verify(folder, str(tiny_model_folder)).problems == []
    ids, costs = random_ids(16, 64), {}
    expected = logits(load(tiny_model_folder), ids).log_softmax(-1)
    for metric in ("two-sided", "none"):
        settings = TWO_SIDED | {"output_metric": metric, "weight_bits": 5, "samples": 32}
        found = pack(tiny_model_folder, tiny_text_file, tmp_path / metric, **settings)
        costs[metric] = float(divergence(expected, logits(load(found), ids).log_softmax(-1))[0].mean())
    assert costs["two-sided"] < 0.97 * costs["none"]


def test_threads_and_an_interruption_do_not_matter(
    folder: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, before = Output.write, torch.get_num_threads()

    def dying(output: Output, number: int, *arguments: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(output, number, *arguments)

    def again() -> Path:
        return pack(tiny_model_folder, tiny_text_file, tmp_path / "cut", **TWO_SIDED, budget=0)

    torch.set_num_threads(3)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Output, "write", dying)
            with pytest.raises(KeyboardInterrupt):
                again()
    finally:
        torch.set_num_threads(before)
    again()
    assert contents(tmp_path / "cut") == contents(folder)


def test_a_stored_calibration_gives_the_same(
    folder: Path, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    recipe = Recipe(**TWO_SIDED | {"output_metric": "none"}, dataset=str(tiny_text_file), samples=4, seqlen=64)
    calibrate(resolve(str(tiny_model_folder)), recipe, tmp_path / "full", "cpu")
    stored = pack(tiny_model_folder, tiny_text_file, tmp_path / "out", **TWO_SIDED, calibration=tmp_path / "full")
    assert contents(stored) == contents(folder)


@pytest.mark.parametrize("settings", [{"sequential": True}, {"allocation": "mixed"}, {"act_bits": 4, "paths": 1}])
def test_it_goes_together_with(
    settings: dict[str, Any], tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    found = pack(tiny_model_folder, tiny_text_file, tmp_path / "two", **TWO_SIDED | settings)
    without = TWO_SIDED | settings | {"output_metric": "none"}
    plain = pack(tiny_model_folder, tiny_text_file, tmp_path / "plain", **without)
    assert verify(found, str(tiny_model_folder)).problems == []
    assert contents(found) != contents(plain)


def test_what_it_cannot_do_is_refused(tmp_path: Path, tiny_model_folder: Path, tiny_tokenizer_folder: Path) -> None:
    for settings in ({"method": "integer"}, {"feedback": "none"}, {"weight_bits": 16, "act_bits": 4}):
        with pytest.raises(NestQuantError, match="weights in nested codes, with feedback"):
            Recipe(**TWO_SIDED | settings)
    with pytest.raises(NestQuantError, match="no output_metric 'tokens'"):
        Recipe(output_metric="tokens")
    recipe = Recipe(**TWO_SIDED)
    model = save_model(make_experts("qwen2_moe"), tiny_tokenizer_folder, tmp_path / "experts")
    experts = open_original(resolve(str(model)), "cpu")
    with pytest.raises(NestQuantError, match="experts"):
        refuse_metric(experts, recipe, Team())
    refuse_metric(experts, Recipe(), Team())
    dense = open_original(resolve(str(tiny_model_folder)), "cpu")
    with pytest.raises(NestQuantError, match="one process, not by 2"):
        refuse_metric(dense, recipe, Team(size=2))


def test_a_plan_counts_the_backward_pass(tiny_model_folder: Path) -> None:
    plain, fed = (Recipe(**TWO_SIDED | {"output_metric": metric}, samples=8) for metric in ("none", "two-sided"))
    before, after = (make_plan(resolve(str(tiny_model_folder)), recipe) for recipe in (plain, fed))
    assert after.memory_bytes > before.memory_bytes and after.file_bytes == before.file_bytes
    assert backward_operations(after, fed) == 4 * after.parameters * 8 * 1024
    assert across_operations(after, fed) > 0
