"""Coded embeddings: what is looked up, what a tied head shares, and what model code and transformers do with them."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.transformers.quantizer import NestQuantConfig
from nestquant_cli.modules.embedding import QuantizedEmbedding, looks_up
from nestquant_cli.modules.resident import resident_bytes, set_resident
from tests.families import load, logits, make_model, random_ids, relative_error

TIED, UNTIED, SCALED = "qwen2", "llama", "gemma3"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp("original") / family for family in (TIED, UNTIED, SCALED)}
    for family, folder in folders.items():
        make_model(family).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module", params=[8, 5.0], ids=["integers", "nested"])
def bits(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module", params=[TIED, UNTIED, SCALED])
def pair(request: pytest.FixtureRequest, originals: dict[str, Path], bits: float) -> tuple[Any, Any]:
    """An original, and the same with weights, embedding and head quantized."""
    folder = originals[request.param]
    config = NestQuantConfig(bits=8, embedding_bits=bits, head_bits=bits)
    return load(folder), load(folder, quantization_config=config)


def test_a_row_is_that_of_the_original_with_all_that_its_class_does(pair: tuple[Any, Any], bits: float) -> None:
    original, packed = pair
    embedding, ids = packed.get_input_embeddings(), random_ids(2, 9)
    assert isinstance(embedding, QuantizedEmbedding) and isinstance(embedding, type(original.get_input_embeddings()))
    found, expected = embedding(ids), original.get_input_embeddings()(ids)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert relative_error(found, expected) < (0.01 if bits == 8 else 0.06)
    assert embedding(ids[:, :0]).shape == (2, 0, expected.shape[-1])
    assert relative_error(logits(packed, ids), logits(original, ids)) < (0.03 if bits == 8 else 0.12)
    with pytest.raises((IndexError, RuntimeError)):
        embedding(torch.tensor([-1]))


def test_a_tied_head_shares_tensors_through_copies_casts_and_forms(pair: tuple[Any, Any]) -> None:
    packed, ids = pair[1], random_ids(1, 8)
    expected, names = logits(packed, ids), set(packed.state_dict())
    tied = packed.config.tie_word_embeddings
    assert ("lm_head.words" in names) != tied and "lm_head.weight" not in names
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert type(other.get_input_embeddings()) is type(packed.get_input_embeddings())
        assert torch.equal(logits(other, ids), expected)
        embedding, head = other.get_input_embeddings(), other.get_output_embeddings()
        assert (embedding._buffers is head._buffers) == tied
        assert embedding.words.data_ptr() != packed.get_input_embeddings().words.data_ptr()
    before = resident_bytes(other)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    set_resident(other, "int8")
    assert ("v" in embedding._buffers) == (tied and embedding.code.int8)
    assert relative_error(logits(other, ids), expected) < 0.01
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    other.load_state_dict(state)
    assert ("v" in embedding._buffers) == (tied and embedding.code.int8)
    set_resident(other, "packed")
    assert torch.equal(logits(other, ids), expected) and resident_bytes(other) == before
    other.to(torch.bfloat16)
    assert embedding(ids).dtype == torch.bfloat16 and embedding.weight.dtype == torch.bfloat16
    assert relative_error(logits(other, ids).float(), expected) < 0.05
    assert other.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (1, 10)


def test_a_saved_model_is_the_same(pair: tuple[Any, Any], tmp_path: Path) -> None:
    packed, ids = pair[1], random_ids(1, 8)
    packed.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path), ids), logits(packed, ids))


def test_another_head_takes_the_embedding_alone(originals: dict[str, Path], tmp_path: Path) -> None:
    packed = load(originals[TIED], quantization_config=NestQuantConfig(bits=8, embedding_bits=8, head_bits=8))
    packed.save_pretrained(tmp_path)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    ids = random_ids(1, 8)
    assert torch.equal(other.get_input_embeddings()(ids), packed.get_input_embeddings()(ids))
    assert other(input_ids=ids).logits.shape == (1, 3)


def test_the_embedding_alone_and_the_head_alone(originals: dict[str, Path]) -> None:
    for part, other in (("embedding_bits", "head_bits"), ("head_bits", "embedding_bits")):
        packed = load(originals[UNTIED], quantization_config=NestQuantConfig(bits=8, **{part: 8, other: 16}))
        assert isinstance(packed.get_input_embeddings(), QuantizedEmbedding) == (part == "embedding_bits")
        assert type(packed.get_output_embeddings()) is not nn.Linear or part == "embedding_bits"
        ids = random_ids(1, 8)
        assert relative_error(logits(packed, ids), logits(load(originals[UNTIED]), ids)) < 0.03
        with pytest.raises(NestQuantError, match="one matrix for its embedding and its output head"):
            load(originals[TIED], quantization_config=NestQuantConfig(bits=8, **{part: 8, other: 16}))


def test_resizing_coded_rows_is_refused(originals: dict[str, Path]) -> None:
    packed = load(originals[UNTIED], quantization_config=NestQuantConfig(bits=8, embedding_bits=8, head_bits=8))
    assert packed.resize_token_embeddings() is packed.get_input_embeddings()
    with pytest.raises(NestQuantError, match="300 coded rows"):
        packed.resize_token_embeddings(310)
    plain = load(originals[UNTIED], quantization_config=NestQuantConfig(bits=8))
    assert plain.resize_token_embeddings(310).num_embeddings == 310


def test_a_compiled_model_is_the_same(originals: dict[str, Path]) -> None:
    packed = load(originals[SCALED], quantization_config=NestQuantConfig(bits=8, embedding_bits=8, head_bits=8))
    ids = random_ids(1, 8)
    compiled = torch.compile(packed, backend="eager", fullgraph=True)
    assert relative_error(logits(compiled, ids), logits(packed, ids)) < 1e-6


class _Own(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(input, self.weight) * 2


class _Twice(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + super().forward(input + 1)


class _Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


def test_a_class_that_reads_its_weight_itself_is_told_apart() -> None:
    sizes = 8, 16
    found = [looks_up(kind(*sizes)) for kind in (nn.Embedding, _Scaled, _Own, _Twice)]
    assert found == [True, True, False, False]
    with torch.device("meta"):
        assert looks_up(_Scaled(*sizes)) and not looks_up(_Own(*sizes))
