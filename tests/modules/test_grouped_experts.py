"""Packed experts: computed by groups what the forward of their class computes expert by expert."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, NemotronHConfig, PretrainedConfig

from nestquant_cli import NestQuantConfig
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.kernels import for_device
from nestquant_cli.models.experts import ExpertMatrices
from nestquant_cli.modules import grouped_experts
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.pipeline.data_free import data_free_recipe, quantize_loaded
from tests.families import gaussian, random_ids, relative_error

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gated": lambda: MixtralConfig(**SIZES, num_local_experts=6, num_experts_per_tok=2),
    "biased": lambda: GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "plain": lambda: NemotronHConfig(
        **{name: value for name, value in SIZES.items() if name != "num_hidden_layers"},
        layers_block_type=["attention", "moe"], n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
        moe_shared_expert_intermediate_size=48, mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=16, n_groups=1,
    ),
}  # fmt: skip


def packed_model(kind: str, dtype: torch.dtype = torch.float32, **bits: float) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() == 3:
            nn.init.normal_(parameter, std=0.3)
    quantize_loaded(model, data_free_recipe(4, bits.get("act", 16), bits.get("kv", 16), 0))
    return model


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    model.set_experts_implementation(name)
    yield
    model.set_experts_implementation(grouped_experts.NAME)


@torch.inference_mode()
def logits(model: Any, ids: Tensor) -> Tensor:
    y: Tensor = model(input_ids=ids, use_cache=False).logits
    return y


@pytest.fixture(scope="module", params=CONFIGS)
def packed(request: pytest.FixtureRequest) -> Any:
    return packed_model(request.param)


def experts_in(model: Any) -> list[Any]:
    return [
        module for module in model.modules() if any(isinstance(child, ExpertMatrices) for child in module.children())
    ]


@pytest.mark.parametrize("form", ["packed", "int8"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (3, 40)])
def test_groups_compute_what_the_class_does(packed: Any, form: str, shape: tuple[int, int]) -> None:
    set_resident(packed, form)
    assert packed.config._experts_implementation == grouped_experts.NAME
    ids = random_ids(*shape) % 64
    y = logits(packed, ids)
    with implementation(packed, "eager"):
        torch.testing.assert_close(y, logits(packed, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_groups_in_bfloat16(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model(kind, torch.bfloat16)
    kernels = for_device(torch.device("cpu"))
    module, width = experts_in(model)[0], model.config.hidden_size
    count = len(next(child for child in module.children() if isinstance(child, ExpertMatrices)))
    for tokens in (1, 3, 60):
        x, weights = gaussian(tokens, width).bfloat16(), gaussian(tokens, 2, seed=1).abs().bfloat16()
        choice, found = torch.rand(tokens, count).topk(2).indices, []
        for form in ("packed", "int8"):
            set_resident(model, form)
            for most in (0, 128):  # without and with exact sums
                monkeypatch.setattr(kernels, "limits", replace(kernels.limits, int16_tokens=most, int16_pairs=most))
                for linear in quantized_linears(model).values():
                    linear.forget()
                with torch.inference_mode():
                    found.append(module(x, choice, weights))
        assert all(relative_error(y, found[0]) < 0.03 for y in found[1:])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("form", ["packed", "int8"])
def test_groups_with_coded_tokens(kind: str, form: str) -> None:
    model = packed_model(kind, act=4)
    set_resident(model, form)
    for shape in ((1, 1), (2, 20)):
        ids = random_ids(*shape) % 64
        y = logits(model, ids)
        with implementation(model, "eager"):
            assert relative_error(y, logits(model, ids)) < 0.05  # a token may be rounded elsewhere after another sum


def test_tokens_are_coded_once_for_all_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model("gated", act=4)
    module = experts_in(model)[0]
    for matrices in module.children():
        for linear in matrices if isinstance(matrices, ExpertMatrices) else ():
            kind = type(linear.source)
    sizes: list[int] = []
    code = kind.code_tokens
    monkeypatch.setattr(kind, "code_tokens", lambda self, x: (sizes.append(len(x)), code(self, x))[1])
    x, choice = torch.randn(30, 32), torch.rand(30, 6).topk(2).indices
    with torch.inference_mode():
        module(x, choice, torch.rand(30, 2))
    chosen = torch.bincount(choice.flatten()).tolist()
    assert sizes == [30, *(count for count in chosen if count)]  # the inputs of down_proj are the experts' own


def test_experts_on_other_devices_give_nothing(packed: Any) -> None:
    for form in ("packed", "int8"):
        set_resident(packed, form)
        module = experts_in(packed)[0]
        count = len(next(child for child in module.children() if isinstance(child, ExpertMatrices)))
        width = packed.config.hidden_size
        x, choice, weights = torch.randn(5, width), torch.rand(5, count).topk(2).indices, torch.rand(5, 2)
        here = choice < count // 2
        with torch.inference_mode():
            y = module(x, torch.where(here, choice, count), weights)
            expected = module(x, choice, weights * here)
            assert module(x, torch.full_like(choice, count), weights).abs().max() == 0
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_experts_of_transformers_that_have_no_norm() -> None:
    """Older versions do not even say so."""
    model = packed_model("gated")
    ids = random_ids(1, 5) % 64
    expected = logits(model, ids)
    for module in experts_in(model):
        vars(module).pop("has_post_expert_norm", None)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("name", ["grouped_mm", "batched_mm"])
def test_implementations_that_take_whole_parameters_are_refused(packed: Any, name: str) -> None:
    with implementation(packed, name), pytest.raises(NestQuantError, match="set_experts_implementation"):
        logits(packed, random_ids(1, 3) % 64)
    assert logits(packed, random_ids(1, 3) % 64).isfinite().all()


def test_a_model_with_parameters_is_computed_by_transformers(packed: Any) -> None:
    plain = AutoModelForCausalLM.from_config(CONFIGS["gated"]()).eval()
    ids = random_ids(1, 9) % 64
    expected = logits(plain, ids)
    plain.set_experts_implementation(grouped_experts.NAME)
    torch.testing.assert_close(logits(plain, ids), expected)


def test_a_gradient_goes_through() -> None:
    for act in (16, 4):
        model = packed_model("gated", act=act)
        set_resident(model, "int8")
        module = experts_in(model)[0]
        x, choice, weights = torch.randn(3, 32), torch.rand(3, 6).topk(2).indices, torch.rand(3, 2)
        found = []
        for name in (grouped_experts.NAME, "eager"):
            model.set_experts_implementation(name)
            token, weight = x.clone().requires_grad_(), weights.clone().requires_grad_()
            module(token, choice, weight).square().sum().backward()
            found.append((token.grad, weight.grad))
        for mine, theirs in zip(*found, strict=True):
            assert relative_error(mine, theirs) < 0.05
            assert mine.abs().max() > 0


def test_copies_and_pickles_compute_the_same(packed: Any) -> None:
    ids = random_ids(1, 7) % 64
    for form in ("packed", "int8"):
        set_resident(packed, form)
        expected = logits(packed, ids)
        assert torch.equal(logits(copy.deepcopy(packed), ids), expected)
        assert torch.equal(logits(pickle.loads(pickle.dumps(packed)), ids), expected)


def test_threads_compute_the_same(packed: Any) -> None:
    set_resident(packed, "int8")
    inputs = [random_ids(1, 1 + number % 5, seed=number) % 64 for number in range(8)]
    expected = [logits(packed, ids) for ids in inputs]
    found: list[Any] = [None] * len(inputs)

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = logits(packed, inputs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_hook_on_an_expert_sees_its_tokens(packed: Any) -> None:
    set_resident(packed, "int8")
    seen: list[str] = []
    handles = [
        linear.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, linear in quantized_linears(packed).items()
        if ".expert_" in name
    ]
    ids = random_ids(1, 1) % 64
    y = logits(packed, ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * 2 * len(experts_in(packed))
    torch.testing.assert_close(y, logits(packed, ids), atol=1e-4, rtol=1e-4)


def test_a_compiled_module_computes_the_same() -> None:
    model = packed_model("gated")
    module = experts_in(model)[0]
    x, choice, weights = torch.randn(5, 32), torch.rand(5, 6).topk(2).indices, torch.rand(5, 2)
    expected = module(x, choice, weights)
    compiled = torch.compile(module, backend="eager")
    for name in (grouped_experts.NAME, "eager"):
        with implementation(model, name), torch.no_grad():
            torch.testing.assert_close(compiled(x, choice, weights), expected, atol=1e-4, rtol=1e-4)


def test_rows_of_different_experts_are_not_one_product() -> None:
    model = packed_model("gated")
    set_resident(model, "int8")
    first, second = list(experts_in(model)[0].gate_up_proj)[:2]
    assert first.source is second.source
    assert first.v.untyped_storage().data_ptr() != second.v.untyped_storage().data_ptr()


def test_a_saved_model_says_nothing_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["gated"]()).save_pretrained(tmp_path / "model")
    settings: dict[str, Any] = {"quantization_config": NestQuantConfig(bits=4), "dtype": "auto"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **settings)
    model.save_pretrained(tmp_path / "packed")
    assert "experts_implementation" not in (tmp_path / "packed" / "config.json").read_text()
    ids = random_ids(1, 6) % 64
    for chosen in ({}, {"experts_implementation": "grouped_mm"}, {"experts_implementation": "eager"}):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", **chosen)
        assert loaded.config._experts_implementation == grouped_experts.NAME
        torch.testing.assert_close(logits(loaded, ids), logits(model, ids))
