"""torch.compile takes a packed model as one graph, and computes what it computes without."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli import NestQuantConfig
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.integer.linear import IntegerLinear
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.codecs.row_scale import row_scale_bits
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules import operators
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.packed_layers import PackedLayer
from nestquant_cli.modules.resident import set_resident
from tests.families import gaussian, load, make_model, random_ids, relative_error, save_model

IDS = random_ids(2, 16)
NESTED = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Any:
    """W4A4KV4 with sliding windows shorter than the text."""
    folder = save_model(make_model("mistral"), tiny_tokenizer_folder, tmp_path_factory.mktemp("mistral") / "model")
    return load(folder, quantization_config=NestQuantConfig(bits=4, act_bits=4, kv_bits=4))


def whole(model: Any) -> Any:
    """Compiled as one graph; that of training is taken apart into forward and backward, too."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("form", ["packed", "int8"])
def test_a_forward_is_one_graph_with_the_same_logits(model: Any, form: str) -> None:
    set_resident(model, form)
    with torch.no_grad():
        expected = model(IDS).logits
        found = whole(model)(IDS, use_cache=False).logits
    assert relative_error(found, expected) < 1e-6


def test_decoding_goes_on_with_the_packed_cache(model: Any) -> None:
    def last(run: Any) -> Tensor:
        step = run(IDS[:, :13], use_cache=True)
        for place in (13, 14, 15):
            step = run(IDS[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
        assert all(layer.keys.dtype == torch.uint8 for layer in step.past_key_values.layers)
        logits: Tensor = step.logits
        return logits

    with torch.no_grad():
        assert relative_error(last(whole(model)), last(model)) < 1e-5


def test_gradients_are_those_without_a_compiler(model: Any) -> None:
    weight = model.get_input_embeddings().weight.requires_grad_()

    def gradient(run: Any) -> Tensor:
        (found,) = torch.autograd.grad(run(IDS, labels=IDS, use_cache=False).loss, weight)
        return found

    expected = gradient(model)
    assert expected.norm() > 0
    assert relative_error(gradient(whole(model)), expected) < 1e-5
    weight.requires_grad_(False)


@pytest.mark.parametrize("weight", ["nested", "integers", "16 bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_learn_with_a_compiler_as_without(weight: str, dtype: torch.dtype) -> None:
    """The input needs a gradient or not: that of the bias is the same, in the bias's dtype."""
    code: Any = {"nested": NESTED.code, "integers": IntegerCode(bits=4, symmetric=True, group=None), "16 bit": None}
    kind = IntegerLinear if weight == "integers" else NestedLinear
    layer = kind(16, 12, True, InputQuantizer(16, 1, NESTED), code[weight], dtype)
    assert layer.bias is not None
    layer.bias.data.normal_(generator=torch.Generator().manual_seed(0))
    if weight == "16 bit":
        layer.weight.data = gaussian(12, 16).to(dtype)
    else:
        layer.words.random_(generator=torch.Generator().manual_seed(0))
        layer.row_scale = row_scale_bits(torch.ones(12))
    layer.bias.requires_grad_()

    def gradients(run: Any, x: Tensor) -> tuple[Tensor, ...]:
        wanted = [layer.bias, x] if x.requires_grad else [layer.bias]
        return torch.autograd.grad((run(x) * gaussian(2, 5, 12, seed=2)).sum(), wanted)  # type: ignore[arg-type]

    for x in (gaussian(2, 5, 16).to(dtype), gaussian(2, 5, 16).to(dtype).requires_grad_()):
        pairs = zip(gradients(whole(layer), x), gradients(layer, x), strict=True)
        for found, expected in pairs:
            assert found.dtype == expected.dtype == dtype and torch.equal(found, expected)


def test_a_bias_that_is_given_in_place_of_the_layers_is_the_one_that_counts() -> None:
    layer = NestedLinear(16, 12, True, InputQuantizer(16, 1, NESTED), NESTED.code, torch.float32)
    x, other = gaussian(3, 16), {"bias": gaussian(12, seed=1)}
    expected = torch.func.functional_call(layer, other, (x,))
    assert torch.equal(expected, layer(x) + other["bias"])
    found = whole(lambda x, other: torch.func.functional_call(layer, other, (x,)))(x, other)
    assert torch.equal(found, expected)


def test_operators_keep_their_contract(model: Any) -> None:
    layer = next(iter(quantized_linears(model).values()))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    x = gaussian(2, 3, layer.in_features).requires_grad_()
    torch.library.opcheck(operators.linear, (x, layer.bias, layer._number), test_utils=checks)
    states = gaussian(2, 2, 5, 16)
    cache = model(IDS, use_cache=True).past_key_values.layers[0]
    which = (cache._number, True, cache.seed)
    torch.library.opcheck(operators.round_states, (states, *which), test_utils=checks)
    packed, rounded = operators.round_states(states, *which)
    torch.library.opcheck(operators.unpack_states, (packed, states, *which), test_utils=checks)
    assert torch.equal(operators.pack_states(states, *which), packed)
    torch.testing.assert_close(operators.unpack_states(packed, states, *which), rounded)


def test_a_copied_layer_is_one_of_its_own(model: Any) -> None:
    layer = next(iter(quantized_linears(model).values()))
    twin = copy.deepcopy(layer)
    set_resident(twin, "packed")
    twin.row_scale.zero_()
    x = gaussian(3, layer.in_features)
    assert (
        operators.linear(x, None, twin._number).abs().max() == 0 < operators.linear(x, None, layer._number).abs().max()
    )


def test_codes_have_a_number_of_their_own_whoever_asks_first() -> None:
    together = Barrier(2)

    class Meeting:
        """A code whose number another thread looks up at the same time."""

        def __hash__(self) -> int:
            together.wait(60)
            return id(self)

    codes: list[Any] = [Meeting(), Meeting()]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda code: operators.register_codes(CacheCodes(code, NESTED)), codes)
    assert one != other
    assert [operators.code_of(number, keys=True) for number in (one, other)] == codes
    equal = [operators.register_codes(CacheCodes(NESTED, NESTED)) for _ in range(2)]
    assert equal[0] == equal[1]


def test_a_layer_of_a_cache_registers_again_where_it_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process the number may be that of other codes."""
    codes = CacheCodes(NESTED, NESTED)
    text = pickle.dumps(PackedLayer(codes, 0))
    monkeypatch.setattr(operators, "_codes", {})
    monkeypatch.setattr(operators, "_numbers_of_codes", {})
    again = pickle.loads(text)
    assert again.codes == codes and operators.code_of(again._number, keys=False) == NESTED
