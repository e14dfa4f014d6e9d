"""Sequential quantization by the real pipeline: better, reproducible, resumable, refused where it has no meaning."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.text import load_text
from nestquant_cli.calibration.windows import sample_windows
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.models.source import load_tokenizer, resolve
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from tests.families import pack
from tests.parallel.test_team import torchrun
from tests.pipeline.test_quantize import hashes

WEIGHTS: dict[str, Any] = {"weight_bits": 3, "act_bits": 16, "kv_bits": 16, "samples": 64}
ALL: dict[str, Any] = {"weight_bits": 4, "act_bits": 4, "kv_bits": 4, "samples": 64, "sequential": True}


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("sequence") / "packed"
    return pack(tiny_model_folder, tiny_text_file, folder, sequential=True, **WEIGHTS)


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    folder, settings = tmp_path_factory.mktemp("corrected") / "packed", {"sequential": True, "residual_correction": 1.0}
    return pack(tiny_model_folder, tiny_text_file, folder, **settings, **WEIGHTS)


def stopping(write: Any) -> Any:
    """`Output.write` that is interrupted in front of the second layer."""

    def stop(self: Output, number: int, *rest: Any, **named: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, *rest, **named)

    return stop


def hidden_error(original: Path, packed: Path, text: Path) -> float:
    """Relative squared error of the last hidden states on the text."""
    states = []
    ids = sample_windows(load_text(str(text), "test"), load_tokenizer(resolve(str(original))), 64, 16, seed=7).ids
    for folder in (original, packed):
        model: Any = load_model(resolve(str(folder)), dtype="float32")
        with torch.inference_mode():
            states.append(model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1])
    return float((states[1] - states[0]).square().sum() / states[0].square().sum())


def better(sequential: Path, plain: Path, original: Path, text: Path) -> bool:
    return hidden_error(original, sequential, text) < 0.8 * hidden_error(original, plain, text)


def test_hidden_states_stay_closer_to_the_original(
    sequential: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    plain = pack(tiny_model_folder, tiny_text_file, tmp_path / "plain", **WEIGHTS)
    assert better(sequential, plain, tiny_model_folder, tiny_text_file)


def test_an_interrupted_run_ends_with_the_same_bytes(
    sequential: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Output, "write", stopping(Output.write))
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", sequential=True, **WEIGHTS)
    again = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", sequential=True, **WEIGHTS)
    assert hashes(again) == hashes(sequential)


def test_correcting_the_residual_stream_keeps_hidden_states_closer(
    sequential: Path, corrected: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    without, found = (hidden_error(tiny_model_folder, folder, tiny_text_file) for folder in (sequential, corrected))
    assert found < 0.97 * without


def test_a_correction_of_zero_leaves_the_bytes(
    sequential: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    settings = {"sequential": True, "residual_correction": 0.0}
    found = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **settings, **WEIGHTS)
    for path in sequential.glob("*.safetensors"):
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("correction", [0, 1])
def test_two_processes_end_with_the_same_bytes(
    correction: int, sequential: Path, corrected: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    text = ["--dataset", tiny_text_file, "--samples", 64, "--seqlen", 64, "--output", tmp_path / "packed"]
    way = ["--sequential", "--residual-correction", correction]
    torchrun("quantize", tiny_model_folder, "--weight-bits", 3, *way, *text)
    for path in (corrected if correction else sequential).glob("*.safetensors"):
        assert (tmp_path / "packed" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("settings", [{"method": "integer"}, {"rotation": "learned"}, {"rotation": "none"}])
def test_it_works_with_every_codec_and_rotation(
    settings: dict[str, Any], tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    plain, found = (
        pack(tiny_model_folder, tiny_text_file, tmp_path / str(way), sequential=way, **WEIGHTS, **settings)
        for way in (False, True)
    )
    assert better(found, plain, tiny_model_folder, tiny_text_file)


WAYS: list[dict[str, Any]] = [{}, {"rotation": "learned"}, {"tensor_parallel": 2}, {"method": "integer"}]
WAYS += [{"residual_correction": 0.5, "channel_scales": True, "drift_correction": 0.0}]


@pytest.mark.parametrize("settings", WAYS)
def test_an_interrupted_run_with_rounded_activations_ends_with_the_same_bytes(
    settings: dict[str, Any],
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pack(tiny_model_folder, tiny_text_file, tmp_path / "whole", **ALL, **settings)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Output, "write", stopping(Output.write))
        pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **ALL, **settings)
    again = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **ALL, **settings)
    assert hashes(again) == hashes(whole)
    config = json.loads((again / "config.json").read_text(encoding="utf-8"))["quantization_config"]["layout"]
    assert config["cache"] and None not in config["cache"]


def test_weights_in_16_bits_and_stored_calibrations_are_refused(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    with pytest.raises(NestQuantError, match="weights are left at 16 bits"):
        Recipe(weight_bits=16, sequential=True)
    with pytest.raises(NestQuantError, match="belongs to a sequential calibration"):
        Recipe(drift_correction=0.5)
    with pytest.raises(NestQuantError, match=r"drift_correction 1\.5 is not a number from 0 to 1"):
        Recipe(sequential=True, drift_correction=1.5)
    with pytest.raises(NestQuantError, match="a residual_correction belongs to a sequential calibration"):
        Recipe(residual_correction=0.5)
    with pytest.raises(NestQuantError, match=r"residual_correction -0\.5 is not a number from 0 to 1"):
        Recipe(sequential=True, residual_correction=-0.5)
    recipe = Recipe(weight_bits=3, act_bits=16, kv_bits=16, sequential=True)
    with pytest.raises(NestQuantError, match="follows the quantization from layer to layer"):
        calibrate(resolve(str(tiny_model_folder)), recipe, tmp_path / "calibration", "cpu")
    assert not (tmp_path / "calibration").exists()
