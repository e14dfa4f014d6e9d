import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json, write_json
from tests.families import make_model, pack, save_model


def tensor_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of words and row scales, and of all tensors."""
    packed = total = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                size = file.get_tensor(name).nbytes
                total += size
                packed += size if name.endswith((".words", ".row_scale")) else 0
    return packed, total


@pytest.mark.parametrize("bits", [4, 3.125])
def test_the_plan_is_what_is_written(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path, bits: float
) -> None:
    folder = save_model(make_model("phi3").bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    plan = make_plan(resolve(str(folder)), Recipe(weight_bits=bits))
    packed, total = tensor_bytes(pack(folder, tiny_text_file, tmp_path / "packed", weight_bits=bits))
    assert sum(row.bytes for row in plan.rows) == packed
    assert plan.file_bytes == total
    assert plan.bits_per_weight == pytest.approx(8 * packed / plan.weights)
    assert bits < plan.bits_per_weight < bits + 0.4
    names = {row.name: (row.matrices, row.out_features, row.in_features) for row in plan.rows}
    assert names["self_attn.qkv_proj"] == (2, 128, 64) and names["mlp.gate_up_proj"] == (2, 256, 64)
    assert plan.memory_bytes > 0


def test_weights_left_alone_count_the_bits_they_have(
    tiny_model_folder: Path, tmp_path: Path, tiny_tokenizer_folder: Path
) -> None:
    half = save_model(make_model("llama").bfloat16(), tiny_tokenizer_folder, tmp_path / "model")
    for folder, bits in ((half, 16), (tiny_model_folder, 32)):
        assert make_plan(resolve(str(folder)), Recipe(weight_bits=16)).bits_per_weight == bits


def test_what_cannot_be_quantized_cannot_be_planned(tmp_path: Path) -> None:
    from transformers import XLNetConfig

    XLNetConfig(d_model=256, n_layer=1, n_head=4, d_inner=512, architectures=["XLNetLMHeadModel"]).save_pretrained(
        tmp_path
    )
    with pytest.raises(NestQuantError, match=r"outside nn\.Linear"):
        make_plan(resolve(str(tmp_path)), Recipe())


def test_tuning_holds_two_models(tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    short, long = (make_plan(source, Recipe(samples=1, tune={"seqlen": n})).memory_bytes for n in (1 << 16, 1 << 17))
    assert make_plan(source, Recipe(samples=1)).memory_bytes < short < long


def test_a_sequential_calibration_keeps_more(tiny_model_folder: Path) -> None:
    source, weights = resolve(str(tiny_model_folder)), {"act_bits": 16, "kv_bits": 16}
    plain, sequential = (make_plan(source, Recipe(sequential=way, **weights)) for way in (False, True))
    corrected = make_plan(source, Recipe(sequential=True, residual_correction=0.5, **weights))
    assert corrected.hidden_bytes > sequential.hidden_bytes and corrected.memory_bytes > sequential.memory_bytes
    assert sequential.hidden_bytes > 5 * plain.hidden_bytes and sequential.memory_bytes > plain.memory_bytes
    assert sequential.rows == plain.rows and sequential.file_bytes == plain.file_bytes


@pytest.mark.parametrize("way", [{"allocation": "mixed"}, {"act_allocation": "mixed"}, {"output_metric": "two-sided"}])
def test_a_backward_pass_has_the_whole_model_in_memory(way: dict[str, str], tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    config = LlamaConfig(hidden_size=1024, num_hidden_layers=40, intermediate_size=4096, vocab_size=512)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    plain, backward = (
        make_plan(source, Recipe(dataset="demo", samples=2, seqlen=128, **settings), model=model).memory_bytes
        for settings in ({}, way)
    )
    assert plain < model.num_parameters() * 4 < backward < model.num_parameters() * 4 + (2 << 30)


def test_the_plan_counts_the_calibration_text(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Ids of a token in three or four characters; all that a tokenizer keeps where it gets the whole text."""
    text = tmp_path / "text.txt"
    with open(text, "wb") as file:
        file.truncate(400 << 20)
    source = resolve(str(tiny_model_folder))
    short, long = (
        make_plan(source, Recipe(dataset=name, samples=1, seqlen=64)).memory_bytes for name in ("demo", str(text))
    )
    assert short + (1 << 30) < long < short + (2 << 30)
    whole = Path(shutil.copytree(tiny_model_folder, tmp_path / "whole"))
    state = read_json(whole / "tokenizer.json")
    state["model"]["dropout"] = 0.1
    write_json(whole / "tokenizer.json", state)
    plan = make_plan(resolve(str(whole)), Recipe(dataset=str(text), samples=1, seqlen=64))
    assert plan.memory_bytes > 60 << 30
