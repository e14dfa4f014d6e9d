"""The two forms of weights in memory: same products, same words."""

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.integer.linear import IntegerLinear
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.codecs.row_scale import row_scale_bits, row_scale_of
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels import for_device
from nestquant_cli.modules import resident, ways
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.modules.resident import resident_bytes, set_resident
from nestquant_cli.storage.files import read_json, sha256_file
from tests.families import (
    Outcome,
    gaussian,
    in_process,
    load,
    logits,
    make_model,
    pack,
    random_ids,
    relative_error,
    save_model,
)

FOUR = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
THREE = ScaledCode(shape_for_bits(3).with_multipliers((3, 4, 5, 7, 9)), 0.8 / 6 / 2)
SIX = ScaledCode(shape_for_bits(6).with_multipliers((3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17)), 0.4 / 46 / 2)
MANY = ScaledCode(shape_for_bits(4).with_multipliers((3,)), 0.04)
IDS = random_ids(2, 20)
ROTATED = 192, 37  # sizes of a matrix whose input the kernels can rotate: 192 is a product of small orders


def random_layer(
    weight: ScaledCode, act: ScaledCode | None, dtype: torch.dtype, sizes: tuple[int, int] = (200, 37)
) -> QuantizedLinear:
    """Words below k·q⁸, which is what encoders write, a third bias."""
    source = InputQuantizer(sizes[0], 1, act)
    layer = NestedLinear(*sizes, True, source, weight.code, dtype)
    rotated = source.rotate(gaussian(sizes[1], sizes[0], seed=6))
    layer.row_scale = row_scale_bits(weight.row_scale(rotated))
    v, index, _ = for_device(rotated.device).quantize(rotated, row_scale_of(layer.row_scale), weight.code)
    layer.words = for_device(rotated.device).pack(v, index, weight.code)
    assert layer.bias is not None
    layer.bias.data = gaussian(sizes[1], seed=5).to(dtype)
    return layer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> Path:
    base = tmp_path_factory.mktemp("resident")
    save_model(make_model("llama"), tiny_tokenizer_folder, base / "model")
    return pack(base / "model", tiny_text_file, base / "packed")


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [FOUR, THREE, MANY], ids=["four", "three", "one-multiplier"])
def test_integer_products_are_the_same(weight: ScaledCode, dtype: torch.dtype, tokens: int) -> None:
    layer, x = random_layer(weight, FOUR, dtype), gaussian(tokens, 200).to(dtype)
    with torch.no_grad():
        packed = layer(x)
        assert layer.hold_int8() and layer.resident == "int8"
        assert torch.equal(layer(x), packed)


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weight_only_products_differ_by_float_rounding(dtype: torch.dtype, tokens: int) -> None:
    layer, x = random_layer(FOUR, None, dtype), gaussian(tokens, 200).to(dtype)
    bound = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    with torch.no_grad():
        packed = layer(x)
        layer.hold_int8()
        assert relative_error(layer(x), packed) < bound


@pytest.mark.parametrize("act", [FOUR, None], ids=["a4", "a16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_panels_make_the_whole(monkeypatch: pytest.MonkeyPatch, act: ScaledCode | None, dtype: torch.dtype) -> None:
    layer, x = random_layer(FOUR, act, dtype), gaussian(9, 200).to(dtype)
    decoded: list[int] = []
    decode = layer.decode
    with torch.no_grad():
        whole = layer(x)
        monkeypatch.setattr(ways, "PANEL", 5 * 200)
        monkeypatch.setattr(layer, "decode", lambda a, b: (decoded.append(b - a), decode(a, b))[1])
        y = layer(x.clone())
    assert decoded == [5] * 7 + [2]
    torch.testing.assert_close(y, whole, rtol=0 if act else 1e-2, atol=0 if act else 1e-2)


@pytest.mark.parametrize("entries", [200, 8, 24])
@pytest.mark.parametrize("code", [FOUR, THREE, MANY], ids=["four", "three", "one-multiplier"])
def test_the_words_come_back(code: ScaledCode, entries: int) -> None:
    layer = random_layer(code, FOUR, torch.float32, (entries, 5))
    words = layer.words.clone()
    assert layer.hold_int8()
    assert "words" not in dict(layer.named_buffers()) and torch.equal(layer.words, words)
    assert set(layer.state_dict()) == {"words", "row_scale", "bias"}
    assert torch.equal(layer.state_dict()["words"], words)
    assert torch.equal(copy.deepcopy(layer).words, words)
    layer.hold_packed()
    assert set(dict(layer.named_buffers())) == {"words", "row_scale"} and torch.equal(layer.words, words)


def test_int8_takes_a_little_more_than_half_of_16_bits() -> None:
    layer = random_layer(FOUR, None, torch.bfloat16, (256, 64))
    weights = 256 * 64
    assert layer.resident_bytes() == weights // 2 + 2 * 64
    layer.hold_int8()
    assert layer.resident_bytes() == weights + weights // 16 + 2 * 64
    assert resident_bytes(torch.nn.ModuleList([layer])) == layer.resident_bytes() < 0.55 * 2 * weights


def test_a_state_dict_is_loaded_into_either_form() -> None:
    first, second = random_layer(FOUR, FOUR, torch.float32), random_layer(FOUR, FOUR, torch.float32)
    first.words = first.words.flip(0)
    second.hold_int8()
    second.load_state_dict(first.state_dict())
    assert second.resident == "int8" and torch.equal(second.words, first.words)


def test_what_int8_cannot_hold_stays_packed() -> None:
    wide = random_layer(SIX, None, torch.float32)
    assert not wide.hold_int8() and wide.resident == "packed"
    strange = random_layer(FOUR, None, torch.float32)
    strange.words = torch.full_like(strange.words, 255)  # a word beyond k·q⁸
    assert not strange.hold_int8() and strange.resident == "packed"
    assert torch.equal(strange.words, torch.full_like(strange.words, 255))


def test_a_checkpoint_saved_from_int8_is_the_same(folder: Path, tmp_path: Path) -> None:
    packed, model = load(folder), load(folder)
    assert set_resident(model, "int8") == "int8"
    assert {layer.resident for layer in quantized_linears(model).values()} == {"int8"}
    assert torch.equal(logits(model, IDS), logits(packed, IDS))
    packed.save_pretrained(tmp_path / "packed")
    model.save_pretrained(tmp_path / "int8")
    name = "model.safetensors"
    assert sha256_file(tmp_path / "int8" / name) == sha256_file(tmp_path / "packed" / name)
    assert set_resident(model, "packed") == "packed"
    assert torch.equal(logits(load(tmp_path / "int8"), IDS), logits(model, IDS))


def test_generation_in_int8(folder: Path) -> None:
    packed, model = load(folder), load(folder)
    set_resident(model, "int8")
    ids = IDS[:1]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), packed.generate(ids, **options))


@pytest.mark.parametrize(("free", "form"), [(1 << 40, "int8"), (1 << 10, "packed")])
def test_auto_looks_at_free_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, form: str) -> None:
    monkeypatch.setattr(resident, "free_memory", lambda device: free)
    model = load(folder)
    assert set_resident(model, "auto") == form
    assert {layer.resident for layer in quantized_linears(model).values()} == {form}


def test_other_models_and_other_names() -> None:
    plain = torch.nn.Linear(8, 8)
    assert set_resident(plain, "auto") in ("packed", "int8")
    with pytest.raises(NestQuantError, match="int4"):
        set_resident(plain, "int4")


@pytest.mark.parametrize("form", ["packed", "int8", "auto"])
def test_the_option_changes_no_perplexity(
    folder: Path,
    tiny_text_file: Path,
    form: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run: Callable[..., Outcome] = in_process(capfd, monkeypatch)
    options = ["--dataset", tiny_text_file, "--seqlen", 64, "--max-windows", 2, "--output", tmp_path / "found.json"]
    found = []
    for each in ("packed", form):
        code, output, _ = run("eval-ppl", folder, *options, "--resident", each)
        assert code == 0 and f"weights {'packed' if each == 'packed' else 'int8'}" in output
        report: dict[str, Any] = read_json(tmp_path / "found.json")
        found.append(report["perplexity"])
        assert report["protocol"]["resident"] == ("packed" if each == "packed" else "int8")
    assert found[0] == found[1]
    assert run("eval-ppl", folder, *options, "--resident", "int4")[0] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_few_tokens_and_many_agree(dtype: torch.dtype) -> None:
    layer = random_layer(FOUR, None, dtype, ROTATED)
    layer.hold_int8()
    x = gaussian(for_device(torch.device("cpu")).limits.joined_tokens + 1, ROTATED[0]).to(dtype)
    with torch.no_grad():
        assert relative_error(layer(x)[:-1], layer(x[:-1].clone())) < 5e-3


def test_linears_with_one_input_share_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = torch.nn.Module()
    parent.q, parent.k = (random_layer(FOUR, None, torch.bfloat16, ROTATED) for _ in range(2))
    parent.k.source = parent.q.source
    x, other = (gaussian(1, ROTATED[0], seed=seed).bfloat16() for seed in (0, 5))
    with torch.no_grad():
        expected = [layer(each) for each in (x, other) for layer in (parent.q, parent.k)]
        assert set_resident(parent, "int8") == "int8"
        calls: list[int] = []
        kernels = for_device(x.device)
        product = kernels.rotated_product
        monkeypatch.setattr(kernels, "rotated_product", lambda *a: (calls.append(1), product(*a))[1])
        for moved in (parent, copy.deepcopy(parent)):
            calls.clear()
            found = [layer(each) for each in (x, other) for layer in (moved.q, moved.k)]
            assert len(calls) == (2 if moved is parent else 4)  # a copy is not joined, and right all the same
            for a, b in zip(expected, found, strict=True):
                assert relative_error(b, a) < 5e-3


@pytest.mark.parametrize("act", [None, FOUR], ids=["a16", "a4"])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_what_a_caller_does_with_a_product_changes_no_later_one(act: ScaledCode | None, tokens: int) -> None:
    layer, x = random_layer(FOUR, act, torch.float32, ROTATED), gaussian(tokens, ROTATED[0])
    layer.bias = None
    for form in ("packed", "int8"):
        set_resident(layer, form)
        with torch.no_grad():
            y = layer(x)
            expected = y.clone()
            y.zero_()
            assert torch.equal(layer(x), expected)


def test_a_product_with_a_few_tokens_follows_the_row_scales() -> None:
    layer, x = random_layer(FOUR, None, torch.float32, ROTATED), gaussian(1, ROTATED[0])
    layer.bias = None
    set_resident(layer, "int8")
    before = layer(x)
    layer.row_scale = row_scale_bits(2 * row_scale_of(layer.row_scale))
    assert torch.equal(layer(x), 2 * before)


@pytest.mark.parametrize("kind", [NestedLinear, IntegerLinear])
def test_a_form_frees_the_tensors_of_the_other(kind: type[QuantizedLinear]) -> None:
    """Also where the product of the weight with the input's center is kept."""
    act = CenteredCode(FOUR, (bytes(FOUR.pack(gaussian(1, 64))[0].tolist()),))
    code: Any = FOUR.code if kind is NestedLinear else IntegerCode(bits=4)
    layer, x = kind(64, 8, False, InputQuantizer(64, 1, act), code, torch.float32), gaussian(40, 64)
    for form, name in (("int8", "words"), ("packed", "v"), ("int8", "words")):
        layer(x)
        held = weakref.ref(getattr(layer, name))
        assert set_resident(layer, form) == layer.resident == form
        gc.collect()
        assert held() is None
