"""FP8 with block scales and MXFP4 are de-quantized by their rules, and quantized like the model in 16 bits."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, LlamaConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.dequantize import dequantized
from nestquant_cli.models.describe import describe
from nestquant_cli.models.load import load_unpacked_model
from nestquant_cli.models.other_methods import Method
from nestquant_cli.models.shards import read_shard, read_tensor
from nestquant_cli.models.source import resolve
from nestquant_cli.models.weights import open_weights
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import read_json, write_json
from tests.families import from_config, gaussian, pack, save_model

BLOCK = (32, 48)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(BLOCK)}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 72,  # not whole blocks
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def read(tensors: dict[str, Tensor], method: Method, folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    file = folder / "one.safetensors"
    save_file(tensors, file)
    stored = {name: (file, entry) for name, entry in read_shard(file).entries.items()}
    found = dequantized(method, stored, "it")
    assert all(read_tensor(*place).shape == place[1].shape for place in found.values())
    return {name: read_tensor(*place).to(dtype) for name, place in found.items()}


def fp8(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit floats, scales and what they stand for in float32, one block after the other."""
    scales = torch.empty(*(-(-size // each) for size, each in zip(weight.shape, block, strict=True)))
    codes, values = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[place].abs().max() / 448
            codes[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
            values[place] = codes[place].float() * scales[i, j]
    return codes, scales, values


@settings(max_examples=25)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), block=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_fp8_is_read_by_the_rule_whatever_the_last_blocks_are(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, block: tuple[int, int]
) -> None:
    codes, scales, values = fp8(gaussian(rows, columns, seed=rows), block)
    tensors = {
        "a.weight": codes,
        "a.weight_scale_inv": scales,
        "a.activation_scale": torch.ones(()),
        "norm": torch.ones(3),
    }
    method = Method("fp8", FP8 | {"weight_block_size": list(block)})
    found = read(tensors, method, tmp_path_factory.mktemp("fp8"), torch.float32)
    assert found.keys() == {"a.weight", "norm"} and torch.equal(found["a.weight"], values)
    whole = rows % block[0] == 0 and columns % block[1] == 0
    if whole:  # otherwise transformers refuses it, or reads other numbers
        assert torch.equal(Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32), values)


def test_a_single_scale_is_one_for_all_entries(tmp_path: Path) -> None:
    codes = gaussian(6, 5).to(torch.float8_e4m3fn)
    for scale in (torch.tensor(0.25), torch.tensor([0.25])):
        found = read(
            {"a.weight": codes, "a.weight_scale_inv": scale},
            Method("fp8", {"weight_block_size": None}),
            tmp_path,
            torch.float32,
        )
        assert torch.equal(found["a.weight"], codes.float() * 0.25)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, r"a\.weight has no weight_scale_inv"),
        (
            {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(3, 3)},
            r"a\.weight of shape \(4, 4\) has scales of shape \(3, 3\)",
        ),
        (
            {"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.weight_scale_inv": torch.ones(1, 1)},
            r"a\.weight is of int8",
        ),
    ],
)
def test_scales_of_another_form_are_refused(tensors: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    with pytest.raises(NestQuantError, match=rf"{told}.*; nothing was quantized; give the original model in 16"):
        read(tensors, Method("fp8", FP8), tmp_path, torch.float32)


@settings(max_examples=10)
@given(experts=st.integers(1, 3), rows=st.integers(1, 9), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_mxfp4_is_read_by_the_rule(
    tmp_path_factory: pytest.TempPathFactory, experts: int, rows: int, groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (experts, rows, groups), dtype=torch.uint8, generator=generator)
    tensors = {
        "experts.down_proj_blocks": blocks,
        "experts.down_proj_scales": scales,
        "experts.bias_scales": scales + 1,
    }
    found = read(tensors, Method("mxfp4", MXFP4), tmp_path_factory.mktemp("mxfp4"), torch.bfloat16)
    assert found.keys() == {"experts.down_proj", "experts.bias_scales"}
    assert torch.equal(found["experts.down_proj"], convert_moe_packed_tensors(blocks, scales))
    low, high = (int(blocks[0, 0, 0, 0]) & 15, int(blocks[0, 0, 0, 0]) >> 4)
    for place, nibble in enumerate((low, high)):
        exponent, mantissa = (nibble >> 1) & 3, nibble & 1
        size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
        value = (-size if nibble & 8 else size) * 2.0 ** (int(scales[0, 0, 0]) - 127)
        assert float(found["experts.down_proj"][0, place, 0]) == value


@pytest.fixture
def in_fp8(tiny_tokenizer_folder: Path, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A Llama whose Linears lie in FP8, and the weights that it stands for."""
    model = from_config(LlamaConfig(**SIZES, dtype="bfloat16")).to(torch.bfloat16)
    folder = save_model(model, tiny_tokenizer_folder, tmp_path / "fp8")
    tensors, meant = load_file(folder / "model.safetensors"), dict[str, Tensor]()
    for name, tensor in list(tensors.items()):
        if ".layers." in name and tensor.dim() == 2:
            codes, scales, values = fp8(tensor.float(), BLOCK)
            tensors |= {name: codes, name + "_scale_inv": scales}
            meant[name] = values.bfloat16()
        else:
            meant[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", read_json(folder / "config.json") | {"quantization_config": FP8})
    return folder, meant


def test_an_fp8_model_is_that_of_its_numbers_whichever_way_it_is_read(
    in_fp8: tuple[Path, dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, meant = in_fp8
    source = resolve(str(folder))
    with caplog.at_level(logging.INFO, "nestquant"):
        model, weights = load_unpacked_model(source), open_weights(source, "cpu")
    assert "the weights of fp8 are de-quantized from FP8" in caplog.text
    assert model.dtype == torch.bfloat16 and weights.lazy
    assert getattr(model.config, "quantization_config", None) is None
    for name, values in meant.items():
        assert torch.equal(model.state_dict()[name], values) and torch.equal(weights.fetch(name), values), name
    assert describe(source) == "fp8, FP8, de-quantized to bfloat16"


def test_an_fp8_model_is_quantized_and_its_checkpoint_says_so(
    in_fp8: tuple[Path, dict[str, Tensor]], tiny_text_file: Path, tmp_path: Path
) -> None:
    folder, meant = in_fp8
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    config = read_json(plain / "config.json")
    del config["quantization_config"]
    write_json(plain / "config.json", config)
    plans = [make_plan(resolve(str(each)), Recipe()) for each in (folder, plain)]
    assert plans[0] == plans[1]
    one, other = (pack(each, tiny_text_file, tmp_path / f"packed-{each.name}") for each in (folder, plain))
    for file in one.glob("*.safetensors"):
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name
    assert read_json(one / "config.json")["quantization_config"]["recipe"]["model"] == (
        "fp8, FP8, de-quantized to bfloat16"
    )
    assert read_json(one / "quantization_report.json")["recipe"]["model"] == "fp8, FP8, de-quantized to bfloat16"


def test_a_model_in_mxfp4_is_that_of_its_numbers(tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    config = GptOssConfig(
        **SIZES | {"intermediate_size": 64}, head_dim=16, num_local_experts=4, num_experts_per_tok=2, dtype="bfloat16"
    )
    folder = save_model(from_config(config).to(torch.bfloat16), tiny_tokenizer_folder, tmp_path / "mxfp4")
    tensors, meant = load_file(folder / "model.safetensors"), dict[str, Tensor]()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in list(tensors.items()):
        meant[name] = tensor
        if tensor.dim() == 3:
            experts, columns, rows = tensor.shape
            blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
            scales = torch.full(blocks.shape[:-1], 122, dtype=torch.uint8)
            meant[name] = convert_moe_packed_tensors(blocks, scales)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            del tensors[name]
    assert len(tensors) == len(meant) + 4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", read_json(folder / "config.json") | {"quantization_config": MXFP4})
    model: Any = load_unpacked_model(resolve(str(folder)))
    assert all(torch.equal(model.state_dict()[name], values) for name, values in meant.items())
    assert describe(resolve(str(folder))) == "mxfp4, MXFP4, de-quantized to bfloat16"
