"""Methods other than NestQuant's own, from the recipe to the loaded checkpoint: the presets, and free combinations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.read import check_checkpoint, read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.pipeline.recipe_file import read_recipe
from tests.families import load, logits, make_model, pack, random_ids, relative_error, save_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PRESETS = [
    "rtn-w4",
    "gptq-w4-g64",
    "gptq-w3-g64",
    "quarot-w4a4kv4",
    "spinquant-w4a4kv4",
    "w4a8kv4",
    "glvq-d8-w2",
    "glvq-d32-w3",
]
EIGHT = {"weight_bits": 8, "act_bits": 8, "kv_bits": 8}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain nestquant": {"rotation": "none", "feedback": "none", "qa": False},
    "learned nestquant": {"rotation": "learned", "reflections": 3},
    "groups everywhere": {
        "method": "integer",
        **{f"{part}_code": {"group": 16, "symmetric": False} for part in ("weight", "act", "kv")},
    },
    "lattices by integers": {"method": "glvq", "weight_bits": 2, "act_bits": 8, "kv_bits": 16},
    "plain integers": {"method": "integer", "rotation": "none", "feedback": "none"},
    "learned, inputs alone": {"method": "integer", "rotation": "learned", "reflections": 2, "weight_bits": 16},
    "cache alone": {"method": "integer", "weight_bits": 16, "act_bits": 16, "kv_code": {"symmetric": False}},
}
IDS = random_ids(1, 24)


def preset(name: str) -> dict[str, Any]:
    settings = read_recipe(CONFIGS / f"{name}.yaml", {}).to_dict()
    return {key: value for key, value in settings.items() if key not in ("dataset", "samples", "seqlen")}


@pytest.fixture(scope="module", params=[*PRESETS, *COMBINATIONS])
def packed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model_folder: Path,
    tiny_text_file: Path,
) -> Path:
    settings = COMBINATIONS.get(request.param) or preset(request.param)
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("methods") / "packed", **settings)


def test_it_verifies_against_its_original(packed: Path, tiny_model_folder: Path) -> None:
    report = verify(packed, str(tiny_model_folder))
    assert not report.problems
    assert report.recomputed.keys() == report.recorded.keys()
    check_checkpoint(packed, tensors=False)


def test_every_byte_is_counted(packed: Path) -> None:
    found = inspect(packed)
    assert found.file_bytes == sum(path.stat().st_size for path in packed.iterdir())
    layout, parts = read_layout(packed), {part.name: part.bytes for part in found.parts}
    learned = sum(count * layout.linears[name].in_features * 2 for name, count in layout.reflections.items())
    assert parts.get("learned rotations", 0) == learned
    assert bool(learned) == (layout.rotation == "learned")
    described = layout.to_dict()
    plain = layout.rotation == "hadamard" and "q" in str(described["act_code"])
    lattices = "dimension" in str(described)
    assert layout.version == (4 if lattices else 3 if "centers" in str(described) else 1 if plain else 2)


def test_forms_in_memory_and_one_token_at_a_time_give_the_same_logits(packed: Path) -> None:
    model = load(packed)
    expected = logits(model, IDS)
    set_resident(model, "int8")
    assert relative_error(logits(model, IDS), expected) < 1e-4
    with torch.no_grad():
        cache, steps = None, []
        for token in IDS.split(1, dim=1):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    assert relative_error(torch.cat(steps, dim=1), expected) < 0.02
    model.save_pretrained(again := packed.parent / "again")
    assert relative_error(logits(load(again), IDS), expected) < 1e-4


@pytest.mark.parametrize("settings", [{"method": "integer"}, {"method": "integer", "rotation": "none"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_eight_bits_are_nearly_the_original(
    family: str, settings: dict[str, Any], tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    original = make_model(family)
    folder = save_model(original, tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(folder, tiny_text_file, tmp_path / "packed", **EIGHT, **settings)
    assert relative_error(logits(load(packed), IDS), logits(original, IDS)) < 0.15


def test_a_stored_calibration_gives_the_same_bytes_for_a_learned_rotation(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    from nestquant_cli.models.source import resolve
    from nestquant_cli.pipeline.quantize import calibrate

    settings = preset("spinquant-w4a4kv4")
    recipe = replace(read_recipe(None, settings), dataset=str(tiny_text_file), samples=4, seqlen=64)
    calibrate(resolve(str(tiny_model_folder)), recipe, tmp_path / "calibration", "cpu")
    direct = pack(tiny_model_folder, tiny_text_file, tmp_path / "direct", **settings)
    stored = pack(
        tiny_model_folder, tiny_text_file, tmp_path / "stored", calibration=tmp_path / "calibration", **settings
    )
    for shard in direct.glob("*.safetensors"):
        assert shard.read_bytes() == (stored / shard.name).read_bytes(), shard.name


@pytest.mark.parametrize(
    ("leaf", "value", "told"),
    [("zeros", 255, "padding after the last zero"), ("row_scale", -1, "not finite and positive")],
)
def test_altered_integers_are_told(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path, leaf: str, value: int, told: str
) -> None:
    from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files, describe_tensors
    from nestquant_cli.storage.files import read_json, write_json

    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **preset("gptq-w4-g64"))
    shard = packed / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    tensors[f"model.layers.0.mlp.up_proj.{leaf}"][3] = value
    save_file(tensors, shard, metadata={"format": "pt"})
    manifest = read_json(packed / MANIFEST)  # as one who knows the hashes would write it
    manifest["files"] |= describe_files(packed, [shard.name])
    manifest["tensors"] |= describe_tensors(packed, [shard.name])
    write_json(packed / MANIFEST, manifest)
    problems = [str(problem) for problem in verify(packed).problems]
    assert len(problems) == 1 and told in problems[0] and "row 3" in problems[0]


def test_the_linear_that_names_an_input_holds_its_reflections(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed", **preset("spinquant-w4a4kv4"))
    linears = quantized_linears(load(packed))
    q, k = (linears[f"model.layers.0.self_attn.{name}_proj"] for name in "qk")
    assert q.source is k.source and q.turn is q.source.reflections and not hasattr(k, "turn")
    assert q.source.reflections is not None and q.source.reflections.reflectors.any()
