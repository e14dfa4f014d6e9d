"""Which matrices of a layout a layer of vLLM is: fused or not, renamed, fused in the checkpoint, or missing."""

from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.vllm.names import Names, Rows, split

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LAYER = "model.layers.0.self_attn"


class Mapper:
    """What is used of vLLM's WeightsMapper: a prefix is replaced, or names are dropped."""

    def __init__(self, old: str, new: str | None) -> None:
        self.old, self.new = old, new

    def map_name(self, name: str) -> str | None:
        if not name.startswith(self.old):
            return name
        return None if self.new is None else self.new + name.removeprefix(self.old)


class Layer:
    """A layer of vLLM."""


def attention() -> Names:
    return Names(f"{LAYER}.{part}_proj" for part in "qkvo")


def test_a_fused_layer_has_its_matrices_in_order() -> None:
    assert attention().of(f"{LAYER}.qkv_proj", PACKED) == [f"{LAYER}.{part}_proj" for part in "qkv"]
    assert attention().of(f"{LAYER}.o_proj", PACKED) == [f"{LAYER}.o_proj"]
    assert attention().of("lm_head", PACKED) == []


def test_a_matrix_fused_in_the_checkpoint_is_one() -> None:
    names = Names([f"{LAYER}.qkv_proj"])
    assert names.of(f"{LAYER}.qkv_proj", {"qkv_proj": ["qkv_proj"]}) == [f"{LAYER}.qkv_proj"]
    assert names.of(f"{LAYER}.qkv_proj", PACKED) == [f"{LAYER}.qkv_proj"]


def test_a_layer_that_is_coded_in_part_is_refused() -> None:
    names = Names([f"{LAYER}.q_proj", f"{LAYER}.k_proj"])
    with pytest.raises(NestQuantError, match="v_proj is not quantized"):
        names.of(f"{LAYER}.qkv_proj", PACKED)


@pytest.mark.parametrize("times", [1, 2])
def test_renaming_keeps_the_original_names(times: int) -> None:
    names = Names([f"{LAYER}.o_proj"])
    for _ in range(times):  # models inside models may bring the same mapper again
        names.rename(Mapper("model.", "model.language_model."))
    new = "model.language_model.layers.0.self_attn.o_proj"
    assert names.of(new, {}) == names.of(f"{LAYER}.o_proj", {}) == [f"{LAYER}.o_proj"]


def test_names_that_a_mapper_drops_stay() -> None:
    names = attention()
    names.rename(Mapper(LAYER, None))
    assert names.of(f"{LAYER}.o_proj", {}) == [f"{LAYER}.o_proj"]


def test_each_matrix_is_taken_once() -> None:
    names, first, second = attention(), Layer(), Layer()
    names.take([f"{LAYER}.q_proj"], first)
    names.take([f"{LAYER}.q_proj"], first)  # vLLM may ask twice for one layer
    with pytest.raises(NestQuantError, match="two layers"):
        names.take([f"{LAYER}.q_proj"], second)
    assert names.untaken() == [f"{LAYER}.{part}_proj" for part in "kvo"]


def test_what_is_inside_a_module() -> None:
    names = Names([f"model.layers.0.mlp.experts.{number}.up_proj" for number in (0, 1)] + [f"{LAYER}.o_proj"])
    assert len(names.below("model.layers.0.mlp.experts")) == 2
    assert names.below("model.layers.0.mlp.expert") == []


def places(features: dict[str, int], sizes: list[int], processes: int = 1) -> list[Any]:
    return [tuple(place) for place in split(list(features), features, sizes, processes)]


def test_outputs_of_matrices() -> None:
    assert places({"q": 8, "k": 4, "v": 4}, [8, 4, 4]) == [("q", (0,), 8), ("k", (1,), 4), ("v", (2,), 4)]
    assert places({"qkv": 16}, [8, 4, 4]) == [("qkv", (0, 1, 2), 16)]
    assert places({"qkv": 16, "z": 6}, [8, 4, 4, 6]) == [("qkv", (0, 1, 2), 16), ("z", (3,), 6)]
    assert split(["a"], {"a": 3}, [3], 1) == [Rows("a", (0,), 3)]


def test_outputs_of_one_process() -> None:
    assert places({"q": 8, "k": 4, "v": 4}, [4, 2, 2], 2) == [("q", (0,), 4), ("k", (1,), 2), ("v", (2,), 2)]
    assert places({"q": 8, "k": 2, "v": 2}, [2, 2, 2], 4)[1] == ("k", (1,), 2)  # all processes have the one head
    assert places({"ab": 12, "c": 6}, [3, 3, 3], 2) == [("ab", (0, 1), 6), ("c", (2,), 3)]


@pytest.mark.parametrize(
    ("features", "sizes"),
    [
        ({"a": 8}, [6]),
        ({"a": 8, "b": 4}, [6, 6]),
        ({"a": 4, "b": 8}, [4, 2, 2, 2]),
        ({"a": 4, "b": 8}, [4, 2, 2, 4, 2]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(features: dict[str, int], sizes: list[int]) -> None:
    with pytest.raises(NestQuantError, match="differ"):
        places(features, sizes)
