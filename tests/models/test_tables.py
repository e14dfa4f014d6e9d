"""Which tables of a model have a row for each token, and what is refused of them."""

from typing import Any

import pytest
from torch import nn

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.tables import Table, find_tables, without_tables
from tests.families import make_model


def test_tied_ones_are_one_table() -> None:
    tied = Table("model.embed_tokens", "model.embed_tokens.weight", 300, 64, True, "lm_head")
    assert find_tables(make_model("qwen2"), True, True) == [tied]
    assert find_tables(make_model("qwen2"), False, False) == []
    model = make_model("llama")
    embedding, head = find_tables(model, True, True)
    assert (embedding.name, embedding.head, embedding.part) == ("model.embed_tokens", None, "embedding")
    assert (head.name, head.tensor, head.part) == ("lm_head", "lm_head.weight", "head")
    assert find_tables(model, True, False) == [embedding] and find_tables(model, False, True) == [head]
    names = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    left = without_tables({name: model.get_parameter(name) for name in names}, [embedding, head])
    assert set(left) == {"model.norm.weight"}


def test_what_is_of_another_kind_is_refused() -> None:
    class Squared(nn.Linear):
        def forward(self, input: Any) -> Any:
            return super().forward(input)[..., :1]

    model = make_model("llama")
    model.lm_head = Squared(64, 300, bias=False)
    with pytest.raises(NestQuantError, match=r"output head cannot be quantized.*it is a Squared"):
        find_tables(model, False, True)
    model = make_model("llama")
    model.model.embed_tokens = nn.EmbeddingBag(300, 64)
    with pytest.raises(NestQuantError, match=r"embedding cannot be quantized.*it is a EmbeddingBag"):
        find_tables(model, True, False)
    model = make_model("qwen2")
    model.all_tied_weights_keys["other.weight"] = "model.embed_tokens.weight"
    with pytest.raises(NestQuantError, match=r"other\.weight is tied to the embedding"):
        find_tables(model, True, True)
