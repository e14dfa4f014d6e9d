"""vLLM's own layers load the tensors of the checkpoint, whole or a process' share of the rows, by their own loaders."""

import importlib.util
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.registry import shape_of
from nestquant_cli.integrations.vllm.names import Names
from nestquant_cli.integrations.vllm.pieces import Piece
from nestquant_cli.modules.layout import Layout
from tests.families import gaussian
from tests.integrations.vllm.matrices import IN, NESTED, Weight, activations, matrix

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not here: make vllm"),
]
HEAD = 8
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
MIXES: list[list[Weight]] = [
    [NESTED, NESTED, NESTED],
    [NESTED, ("nestquant", 3, None), ("nestquant", 6, None)],  # words of three widths
    [("glvq", 2, None), ("glvq", 2, None), NESTED],
    [("integer", 4, {"group": 16, "symmetric": False}), ("integer", 4, None), NESTED],  # scales in groups or one
]


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    """vLLM's groups of processes, with this one alone."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.utils.network_utils import get_open_port

    with set_current_vllm_config(VllmConfig()):
        address = f"tcp://127.0.0.1:{get_open_port()}"
        init_distributed_environment(1, 0, address, 0, backend="gloo")
        initialize_model_parallel(1)
        yield
        cleanup_dist_env_and_memory()


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Lets layers believe that they are those of one process of several."""

    def believe(rank: int, count: int) -> None:
        from vllm.model_executor import parameter
        from vllm.model_executor.layers import linear

        for module in (linear, parameter):
            monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
            monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: count)

    return believe


Stored = dict[str, tuple[Piece, dict[str, Tensor]]]


def config_of(stored: Stored) -> Any:
    """The configuration of a checkpoint with these matrices."""
    from nestquant_cli.integrations.vllm.config import CheckpointConfig

    shape = shape_of("nestquant", 4, None, "weight")
    layout = Layout(shape, None, None, 1, {}, {"x": None})
    config = pickle.loads(pickle.dumps(CheckpointConfig({"layout": layout.to_dict()})))
    config.packed_modules_mapping = PACKED
    linears = {name: piece.linear for name, (piece, _) in stored.items()}
    config.state.layout = replace(layout, linears=linears)  # of several codecs, which no recipe gives
    config.state.names = Names(linears)
    return config


def random(names: list[str], weights: list[Weight], rows: list[int]) -> Stored:
    return {
        name: matrix(weight, count, number)
        for number, (name, weight, count) in enumerate(zip(names, weights, rows, strict=True))
    }


def loaded(layer: Any, stored: Stored, shards: dict[str, Any]) -> Any:
    """The layer with the tensors of its matrices, given to it as vLLM's models do."""
    parameters = dict(layer.named_parameters())
    for name, (_, tensors) in stored.items():
        for kind, tensor in tensors.items():
            shard = () if shards[name] is None else (shards[name],)
            parameters[kind].weight_loader(parameters[kind], tensor, *shard)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def product(layer: Any, x: Tensor) -> Tensor:
    y: Tensor = layer.quant_method.apply(layer, x)
    return y


@pytest.mark.parametrize("weights", MIXES)
@pytest.mark.parametrize(("heads", "kv_heads", "count"), [(4, 2, 1), (4, 2, 2), (4, 1, 2), (4, 4, 4)])
def test_queries_keys_and_values(
    weights: list[Weight], heads: int, kv_heads: int, count: int, as_process: Callable[[int, int], None]
) -> None:
    from vllm.model_executor.layers.linear import QKVParallelLinear

    names = [f"layers.0.{part}_proj" for part in "qkv"]
    stored = random(names, weights, [heads * HEAD, kv_heads * HEAD, kv_heads * HEAD])
    x = gaussian(5, IN)

    def layer() -> Any:
        made = QKVParallelLinear(
            IN, HEAD, heads, kv_heads, bias=False, quant_config=config_of(stored), prefix="layers.0.qkv_proj"
        )
        return loaded(made, stored, dict(zip(names, "qkv", strict=True)))

    whole = product(layer(), x)
    q, k, v = whole.split([heads * HEAD, kv_heads * HEAD, kv_heads * HEAD], dim=-1)
    for rank in range(count):
        as_process(rank, count)
        parts = []
        for y, number in ((q, heads), (k, kv_heads), (v, kv_heads)):
            size = max(1, number // count) * HEAD
            start = rank * size if number >= count else rank * number // count * HEAD
            parts.append(y[:, start : start + size])
        assert torch.equal(product(layer(), x), torch.cat(parts, dim=-1))


@pytest.mark.parametrize("count", [1, 2])
def test_matrices_fused_in_the_checkpoint(count: int, as_process: Callable[[int, int], None]) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    x = gaussian(5, IN)
    for name, sizes, make in (
        ("qkv_proj", [32, 16, 16], lambda **given: QKVParallelLinear(IN, HEAD, 4, 2, **given)),
        ("gate_up_proj", [24, 24], lambda **given: MergedColumnParallelLinear(IN, [24, 24], **given)),
    ):
        stored = random([name], [NESTED], [sum(sizes)])

        def layer(name: str = name, make: Any = make, stored: Stored = stored) -> Any:
            return loaded(make(bias=False, quant_config=config_of(stored), prefix=name), stored, {name: None})

        as_process(0, 1)
        outputs = product(layer(), x).split(sizes, dim=-1)
        for rank in range(count):
            as_process(rank, count)
            parts = [y.chunk(count, dim=-1)[rank] for y in outputs]
            assert torch.equal(product(layer(), x), torch.cat(parts, dim=-1))


def test_replicated_and_row_parallel_layers(as_process: Callable[[int, int], None]) -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear, RowParallelLinear

    stored, x = random(["one"], [("glvq", 2, None)], [24]), gaussian(5, IN)
    row = loaded(RowParallelLinear(IN, 24, False, quant_config=config_of(stored), prefix="one"), stored, {"one": None})
    as_process(1, 2)
    same = loaded(ReplicatedLinear(IN, 24, False, quant_config=config_of(stored), prefix="one"), stored, {"one": None})
    assert torch.equal(product(row, x), product(same, x))


def test_the_graph_of_a_compiled_layer_has_no_number_in_it() -> None:
    """Two layers of one shape have one graph, and each gives its own product."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    layers = []
    for seed in (1, 2):
        stored = {"one": matrix(NESTED, 24, seed)}
        made = ReplicatedLinear(IN, 24, True, quant_config=config_of(stored), prefix="one")
        made.bias.data = gaussian(24, seed=seed)
        layers.append(loaded(made, stored, {"one": None}))
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph

    x = gaussian(5, IN)
    with torch.inference_mode():
        for layer in layers:
            torch._dynamo.reset()
            y = torch.compile(lambda x, layer=layer: layer(x)[0], backend=backend, fullgraph=True)(x)
            assert torch.equal(y, layer(x)[0])
    assert graphs[0] == graphs[1] and "nestquant_vllm" in graphs[0]
    assert not torch.equal(layers[0](x)[0], layers[1](x)[0])


def test_tensors_that_were_not_loaded_are_named() -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    stored = random(["one"], [NESTED], [24])
    layer = ReplicatedLinear(IN, 24, False, quant_config=config_of(stored), prefix="one")
    with pytest.raises(NestQuantError, match="not loaded the tensors of one"):
        layer.quant_method.process_weights_after_loading(layer)


def test_a_matrix_that_no_layer_has_is_named() -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    stored = random(["one", "two"], [NESTED, NESTED], [24, 24])
    config = config_of(stored)
    plain = ReplicatedLinear(IN, 24, False, quant_config=config, prefix="three")
    with pytest.raises(NestQuantError, match=r"no layer for 2 coded matrices, such as one"):
        plain.quant_method.process_weights_after_loading(plain)


def test_a_matrix_without_layer_is_named_before_anything_is_loaded() -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    stored = random(["one", "two"], [NESTED, NESTED], [24, 24])
    config = config_of(stored)
    layer = ReplicatedLinear(IN, 24, False, quant_config=config, prefix="one")
    with pytest.raises(NestQuantError, match=r"no layer for 1 coded matrices, such as two"):
        config.get_checkpoint_weight_mapper()
    other = ReplicatedLinear(IN, 24, False, quant_config=config, prefix="two")
    assert config.get_checkpoint_weight_mapper().map_name("one.words") == "one.words"
    assert layer is not other  # both are held while the mapper is asked for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_that_latent_attention_takes_apart(dtype: torch.dtype) -> None:
    from vllm.model_executor.layers.linear import ColumnParallelLinear
    from vllm.model_executor.layers.quantization.utils.quant_utils import get_and_maybe_dequant_weights

    from nestquant_cli.integrations.vllm.linear import take_apart

    stored = {"one": matrix(NESTED, 24, 1)}
    layer = ColumnParallelLinear(IN, 24, False, quant_config=config_of(stored), prefix="one")
    take_apart(layer)
    weight = loaded(layer, stored, {"one": None}).coded.dequantized()
    found = get_and_maybe_dequant_weights(layer, out_dtype=dtype)
    torch.testing.assert_close(found.float(), weight, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)


def test_one_with_a_rounded_input_is_refused() -> None:
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    from nestquant_cli.integrations.vllm.linear import take_apart

    config = config_of(random(["one"], [NESTED], [24]))
    layer = ColumnParallelLinear(IN, 24, False, quant_config=config, prefix="one")
    config.state.layout.inputs["x"] = activations(8)
    with pytest.raises(NestQuantError, match="--act-bits 16"):
        take_apart(layer)


def test_a_layer_with_another_number_of_columns_is_refused() -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    stored = random(["one"], [NESTED], [24])
    with pytest.raises(NestQuantError, match=f"has {IN} columns"):
        ReplicatedLinear(IN + 8, 24, False, quant_config=config_of(stored), prefix="one")
