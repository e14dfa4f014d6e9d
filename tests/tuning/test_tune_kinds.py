"""A tuning of each kind of checkpoint: it lowers the loss that the written checkpoint has, and the files are sound."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.codecs import registry
from nestquant_cli.models.source import load_config, load_tokenizer, resolve
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json
from nestquant_cli.tuning.distill import Distillation
from nestquant_cli.tuning.held_out import TuneText, read_tune_windows
from nestquant_cli.tuning.settings import TuneSettings
from nestquant_cli.tuning.tune import tune
from tests.codecs.toy.shifted import ShiftedCodec
from tests.expert_models import make_experts
from tests.families import pack, save_model

SETTINGS = TuneSettings(steps=12, seqlen=32, batch=2, rate=0.003, held_out=8, checks=3)
WEIGHTS_ALONE = {"act_bits": 16, "kv_bits": 16}
MOSTLY_WEIGHTS = {"weight_bits": 3, "act_bits": 8, "kv_bits": 8}  # so that few steps already show
KINDS: dict[str, dict[str, Any]] = {
    "channel_scales": {"channel_scales": True},
    "sequential": {"sequential": True},
    "mixed": {"allocation": "mixed"},
    "integer": {"method": "integer"},
    "groups": {"method": "integer", "weight_code": {"symmetric": False, "group": 16}},
    "nested_inputs": {"act_bits": 6},
    "glvq": {"method": "glvq", "weight_bits": 2, **WEIGHTS_ALONE},
    "learned": {"rotation": "learned", "reflections": 4},
    "unrotated": {"rotation": "none"},
    "parts": {"tensor_parallel": 2, "channel_scales": True},
    "tables": {"embedding_bits": 8, "head_bits": 4},
    "cache": {"kv_bits": 6, "key_bits": 7, "kv_window": 4, "kv_sinks": 2, "kv_skip_layers": "0"},
}
OFTEN = ("channel_scales", "groups")


@dataclass
class Tuned:
    """A tuned checkpoint.

    Attributes:
        folder: where it is.
        report: what the tuning returned.
        score: loss on the held-out windows of a model that is loaded from it.
    """

    folder: Path
    report: dict[str, Any]
    score: float


def tuned(original: Path, text: Path, folder: Path, settings: dict[str, Any]) -> Tuned:
    packed = pack(original, text, folder / "packed", **settings)
    source = resolve(str(packed))
    report = tune(packed, resolve(str(original)), SETTINGS, folder / "tuned", "cpu", TuneText(str(text)))
    windows = read_tune_windows(TuneText(str(text)), load_tokenizer(source), load_config(source), SETTINGS, 0)
    teacher, student = (load_model(resolve(str(each))) for each in (original, folder / "tuned"))
    score = Distillation(teacher, student, read_layout(folder / "tuned")).score(windows.held_out)
    return Tuned(folder / "tuned", report, score)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in OFTEN)) for kind in KINDS])
def test_each_kind_of_checkpoint_is_tuned(
    kind: str, tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    result = tuned(tiny_model_folder, tiny_text_file, tmp_path, MOSTLY_WEIGHTS | KINDS[kind])
    tuning = result.report["tuning"]
    assert tuning["loss_after"] < tuning["loss_before"]
    assert result.score == pytest.approx(tuning["loss_after"], rel=1e-5)
    assert verify(result.folder, str(tiny_model_folder)).problems == []
    before = read_json(tmp_path / "packed" / "config.json")["quantization_config"]["layout"]
    assert read_json(result.folder / "config.json")["quantization_config"]["layout"] == before


@pytest.mark.slow
def test_experts_are_tuned(tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    original = save_model(make_experts("mixtral"), tiny_tokenizer_folder, tmp_path / "model")
    result = tuned(original, tiny_text_file, tmp_path, MOSTLY_WEIGHTS | {"all_experts": True})
    tuning = result.report["tuning"]
    assert tuning["loss_after"] < tuning["loss_before"]
    assert result.score == pytest.approx(tuning["loss_after"], rel=1e-5)
    assert verify(result.folder, str(original)).problems == []


def test_a_codec_without_scales_to_tune_is_refused(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = ShiftedCodec()
    monkeypatch.setitem(registry.CODECS, codec.name, codec)
    recipe = Recipe(method=codec.name, weight_bits=4, **WEIGHTS_ALONE)
    with pytest.raises(NestQuantError, match="scales of weights of shifted cannot be tuned"):
        replace(recipe, tune={})
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", method=codec.name, **WEIGHTS_ALONE)
    with pytest.raises(NestQuantError, match="weights of shifted, whose scales cannot be tuned"):
        tune(packed, resolve(str(tiny_model_folder)), SETTINGS, tmp_path / "t", "cpu", TuneText(str(tiny_text_file)))
