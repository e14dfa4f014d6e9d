import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import YoutuConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.manifest import INDEX, MANIFEST, REPORT, describe_tensors
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe
from tests.families import from_config, pack, save_model

FIRST, SECOND, LAST = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
UP = "model.layers.0.mlp.up_proj"
Rewrite = Callable[[str, Any], None]


def problems(folder: Path, original: str | None = None) -> list[str]:
    return [str(problem) for problem in verify(folder, original).problems]


@pytest.fixture
def change_tensor(copy: Path, rehash: Callable[[], None]) -> Callable[[str, Callable[[torch.Tensor], Any]], None]:
    """Changes a tensor and lets manifest and hashes agree, so that only a look at the content finds it."""

    def change(name: str, edit: Callable[[torch.Tensor], Any]) -> None:
        tensors = load_file(copy / FIRST)
        edit(tensors[name])
        save_file(tensors, copy / FIRST, metadata={"format": "pt"})
        manifest = json.loads((copy / MANIFEST).read_text())
        manifest["tensors"] |= describe_tensors(copy, [FIRST])
        (copy / MANIFEST).write_text(json.dumps(manifest))
        rehash()

    return change


def test_a_whole_checkpoint_is_sound(tiny_checkpoint: Path) -> None:
    report = verify(tiny_checkpoint)
    report.refuse()
    files = [path for path in tiny_checkpoint.iterdir() if path.name != MANIFEST]
    assert (report.files, report.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert (report.matrices, report.words) == (14, 2 * 36864 // 8)
    assert report.tensors == 14 * 2 + 2 * 2 + 3
    assert len(report.recorded) == 14 and not report.recomputed and not report.unlisted
    assert json.loads(json.dumps(report.as_json()))["ok"] is True


def test_recorded_errors_are_those_against_the_original(tiny_checkpoint: Path, tiny_model_folder: Path) -> None:
    report = verify(tiny_checkpoint, str(tiny_model_folder))
    assert report.problems == []
    assert report.recomputed == pytest.approx(report.recorded, rel=1e-4)


def test_another_original_is_found_out(
    tiny_checkpoint: Path, tmp_path: Path, make_model_folder: Callable[[Path, int], Path]
) -> None:
    other = make_model_folder(tmp_path / "other", 1)
    found = problems(tiny_checkpoint, str(other))
    assert any(UP in problem and "relative error" in problem for problem in found)
    assert any("embed_tokens" in problem and "differs from the original" in problem for problem in found)
    with pytest.raises(NestQuantError, match="is a packed checkpoint"):
        verify(tiny_checkpoint, str(tiny_checkpoint))


def test_a_flipped_byte_is_found_in_every_file(tiny_checkpoint: Path, copy: Path) -> None:
    for path in sorted(tiny_checkpoint.iterdir()):
        content = path.read_bytes()
        for at in (0, len(content) // 3, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[at] ^= 0x10
            (copy / path.name).write_bytes(damaged)
            try:
                found = problems(copy)
            except NestQuantError as error:
                assert path.name == MANIFEST and path.name in error.cause
            else:
                if path.name == MANIFEST:  # it accuses whom it describes wrongly
                    assert found, at
                else:
                    assert len({problem.split(":")[0] for problem in found} - {path.name}) == 0 and found, (path, at)
        (copy / path.name).write_bytes(content)
    assert problems(copy) == []


@pytest.mark.parametrize(("at", "tensor"), [(-1, "words"), (None, "input_layernorm.weight")])
def test_one_flipped_byte_of_a_tensor_is_one_problem_that_names_it(copy: Path, at: int | None, tensor: str) -> None:
    content = bytearray((copy / FIRST).read_bytes())
    content[8 + int.from_bytes(content[:8], "little") if at is None else at] ^= 1
    (copy / FIRST).write_bytes(content)
    report = verify(copy)
    assert len(report.problems) == 1
    problem = report.problems[0]
    assert problem.file == FIRST and problem.tensor is not None and problem.tensor.endswith(tensor)
    with pytest.raises(NestQuantError, match=rf"{FIRST}: .*{tensor}: was altered"):
        report.refuse()


def test_missing_truncated_and_lengthened_files(tiny_checkpoint: Path, copy: Path) -> None:
    for path in sorted(tiny_checkpoint.iterdir()):
        if path.name in (MANIFEST, "config.json"):
            continue
        content = path.read_bytes()
        (copy / path.name).write_bytes(content[: len(content) // 2])
        assert [problem.startswith(f"{path.name}: is truncated") for problem in problems(copy)] == [True]
        (copy / path.name).write_bytes(content + b"\n")
        assert [problem.startswith(f"{path.name}: is too long") for problem in problems(copy)] == [True]
        (copy / path.name).unlink()
        assert problems(copy) == [f"{path.name}: is missing"]
        (copy / path.name).write_bytes(content)
    (copy / "config.json").unlink()
    with pytest.raises(NestQuantError, match="incomplete"):
        verify(copy)


def test_swapped_shards(copy: Path) -> None:
    (copy / FIRST).rename(copy / "x")
    (copy / SECOND).rename(copy / FIRST)
    (copy / "x").rename(copy / SECOND)
    found = problems(copy)
    assert f"{SECOND}: {UP}.words: belongs to {FIRST}" in found


def test_swapped_tensors_of_one_shape(copy: Path) -> None:
    tensors = load_file(copy / FIRST)
    gate = UP.replace("up_proj", "gate_proj")
    tensors[f"{UP}.words"], tensors[f"{gate}.words"] = tensors[f"{gate}.words"], tensors[f"{UP}.words"]
    save_file(tensors, copy / FIRST, metadata={"format": "pt"})
    altered = {f"{FIRST}: {name}.words: was altered: its hash is not that of the manifest" for name in (UP, gate)}
    assert set(problems(copy)) == altered


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (10**9).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_shard_that_is_no_safetensors_file(copy: Path, rehash: Callable[[], None], content: bytes) -> None:
    (copy / FIRST).write_bytes(content)
    assert [problem.split(":")[0] for problem in problems(copy)] == [FIRST]
    rehash()
    found = problems(copy)
    assert found[0].startswith(f"{FIRST}: is damaged") and len(found) == 1


def test_a_file_of_the_user_is_no_problem_but_a_stray_shard_is(copy: Path) -> None:
    (copy / "README.md").write_text("mine")
    report = verify(copy)
    assert (report.problems, report.unlisted) == ([], ["README.md"])
    shutil.copy(copy / FIRST, copy / "model.safetensors")
    assert problems(copy) == ["model.safetensors: is not in the manifest"]


def high_word(words: torch.Tensor) -> None:
    words[5, 4:8] = 255  # 2³² − 1 ≥ 5·13⁸


def other_word(words: torch.Tensor) -> None:
    words[5, 4:8] = 0


@pytest.mark.parametrize(
    ("name", "edit", "told"),
    [
        (f"{UP}.words", high_word, f"{FIRST}: {UP}.words: row 5: word 1 is not below k·q⁸"),
        (f"{UP}.words", other_word, f"{REPORT}: {UP}: records the β histogram"),
        (f"{UP}.row_scale", lambda t: t[3].zero_(), f"{FIRST}: {UP}.row_scale: the scale of row 3 is 0.0"),
        (f"{UP}.row_scale", lambda t: t[3].fill_(-1), f"{FIRST}: {UP}.row_scale: the scale of row 3 is nan"),
        (f"{UP}.row_scale", lambda t: t[3].fill_(0x7F80), f"{FIRST}: {UP}.row_scale: the scale of row 3 is inf"),
        (f"{UP}.row_scale", lambda t: t[3].sub_(1 << 15), f"{FIRST}: {UP}.row_scale: the scale of row 3 is -"),
    ],
)
def test_contents_are_checked_beyond_their_hashes(
    copy: Path,
    change_tensor: Callable[[str, Callable[[torch.Tensor], Any]], None],
    name: str,
    edit: Callable[[torch.Tensor], Any],
    told: str,
) -> None:
    change_tensor(name, edit)
    found = problems(copy)
    assert len(found) == 1 and found[0].startswith(told), found


def test_a_matrix_that_is_not_the_originals(
    copy: Path, tiny_model_folder: Path, change_tensor: Callable[[str, Callable[[torch.Tensor], Any]], None]
) -> None:
    change_tensor(f"{UP}.row_scale", lambda scale: scale.add_(1))
    assert problems(copy) == []
    found = problems(copy, str(tiny_model_folder))
    assert len(found) == 1 and f"{UP}: its relative error is" in found[0]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ([], "has no record of matrices"),
        ({"matrices": []}, "has no record of matrices"),
        (lambda r: r["matrices"].pop(UP), "has no record"),
        (lambda r: r["matrices"].update(more={}), "no such quantized matrix"),
        (lambda r: r["matrices"][UP].update(relative_error=float("nan")), "relative_error nan"),
        (lambda r: r["matrices"][UP].update(relative_error="0.1"), "relative_error 0.1"),
        (lambda r: r["matrices"][UP].update(hessian_error=-1), "hessian_error -1"),
        (lambda r: r["matrices"][UP].update(shape=[1, 2]), "records the shape"),
        (lambda r: r["matrices"][UP].update(multipliers=[1]), "records the multipliers"),
        (lambda r: r["matrices"][UP].update(clipped_blocks=None), "clipped_blocks"),
        (lambda r: r["matrices"][UP]["beta_histogram"].reverse(), "β histogram"),
    ],
)
def test_records_are_checked(copy: Path, rewrite: Rewrite, edit: Any, told: str) -> None:
    rewrite(REPORT, edit)
    found = problems(copy)
    assert len(found) == 1 and found[0].startswith(REPORT) and told in found[0]


@pytest.mark.parametrize(
    "edit",
    [
        [],
        lambda c: c["quantization_config"].update(layout=[]),
        lambda c: c["quantization_config"]["layout"].update(format_version=9),
        lambda c: c["quantization_config"]["layout"]["linears"].pop(UP),
        lambda c: c["quantization_config"]["layout"]["linears"][UP].update(in_features=128),
        lambda c: c["quantization_config"]["layout"]["linears"].update({"model.norm": {}}),
        lambda c: c["quantization_config"]["layout"]["cache"].pop(),
        lambda c: c.update(num_hidden_layers=10**9),
        lambda c: c.update(num_hidden_layers="many"),
        lambda c: c.update(num_hidden_layers=1),
        lambda c: c.update(vocab_size=10**12),
        lambda c: c.update(hidden_size=-64),
        lambda c: c.update(model_type="no such"),
        lambda c: c.pop("model_type"),
    ],
)
def test_a_config_that_does_not_describe_the_tensors(copy: Path, rewrite: Rewrite, edit: Any) -> None:
    rewrite("config.json", edit)
    assert problems(copy)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_an_index_of_the_wrong_form(copy: Path, rehash: Callable[[], None], text: str) -> None:
    (copy / INDEX).write_text(text)
    rehash()
    assert [problem.split(":")[0] for problem in problems(copy)] == [INDEX]


def test_what_is_no_packed_checkpoint_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(NestQuantError, match="is not a packed checkpoint"):
        verify(tiny_model_folder)


@pytest.mark.parametrize(
    "bits",
    [
        {"weight_bits": 3.5, "act_bits": 16, "kv_bits": 16},
        {"weight_bits": 6, "act_bits": 5, "kv_bits": 2},
        {"weight_bits": 16, "act_bits": 4, "kv_bits": 16},
        {"weight_code": {"q": 14, "k": 4}, "kv_bits": 16},
    ],
)
def test_other_recipes_are_sound(tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path, bits: Any) -> None:
    recipe = Recipe(**bits, dataset=str(tiny_text_file), samples=1, seqlen=64)
    quantize(resolve(str(tiny_model_folder)), recipe, tmp_path / "out", "cpu")
    report = verify(tmp_path / "out", str(tiny_model_folder))
    assert report.problems == []
    assert len(report.recomputed) == report.matrices == (0 if recipe.shape("weight") is None else 14)


def test_a_padding_row_that_transformers_zeroes_on_loading_is_no_problem(
    tiny_tokenizer_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    heads = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
    config = YoutuConfig(vocab_size=300, **sizes, **heads, q_lora_rank=32, kv_lora_rank=32, pad_token_id=1)
    model: Any = from_config(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = 1.0
    folder = save_model(model, tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(folder, tiny_text_file, tmp_path / "packed", kv_bits=16)
    assert problems(packed, str(folder)) == []
