from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.generation.sampling import Sampling
from nestquant_cli.generation.writer import Writer, open_writer
from nestquant_cli.models.source import resolve
from tests.families import CONTEXT, load, make_model, random_ids

PROMPT = random_ids(1, 20)[0].tolist()


def opened(folder: Path, new: int = 12, dtype: str = "float32", **settings: Any) -> Writer:
    return open_writer(resolve(str(folder)), Sampling(max_new_tokens=new, **settings), "packed", dtype, "cpu")


def by_hand(folder: Path, ids: list[int], new: int) -> list[int]:
    """The likeliest tokens, each from a plain generate() of transformers."""
    model = load(folder, dtype=torch.float32)
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=new, do_sample=False)[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_the_text_is_that_of_generate_and_comes_in_pieces(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    writer, pieces = opened(folder), list[str]()
    answer = writer.write(PROMPT, pieces.append)
    assert answer.tokens == by_hand(folder, PROMPT, 12)
    assert "".join(pieces) == answer.text == writer.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    assert not answer.interrupted


def test_figures_count_what_is_there(talking: Path, talking_packed: Path) -> None:
    plain, packed = (opened(folder).write(PROMPT).figures for folder in (talking, talking_packed))
    for figures in (plain, packed):
        assert (figures.prompt_tokens, figures.reused_tokens, figures.new_tokens) == (20, 0, 12)
        assert figures.tokens_per_second and figures.tokens_per_second > 0
        assert "tokens/s" in figures.line() and figures.peak_bytes > 1 << 26
    model = load(talking, dtype=torch.float32)
    assert plain.weight_bytes == sum(each.nbytes for each in model.parameters())
    assert plain.cache_bytes == 2 * 2 * (20 + 11) * 32 * 4  # layers, keys and values, tokens, heads × size, float32
    quantized = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert packed.weight_bytes < plain.weight_bytes - 3 * quantized
    assert packed.cache_bytes and packed.cache_bytes < plain.cache_bytes / 2
    assert (plain.resident, packed.resident) == (None, "packed")


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_what_texts_have_in_common_is_not_computed_again(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    writer = opened(folder)
    first = writer.write(PROMPT)
    longer = [*PROMPT, *first.tokens, 5, 6]
    second = writer.write(longer)
    assert second.figures.reused_tokens == len(PROMPT) + 11
    assert second.figures.prompt_tokens == len(longer) - len(PROMPT) - 11
    assert second.tokens == opened(folder).write(longer).tokens
    other = [*longer[:25], 9, 10]
    third = writer.write(other)
    assert third.figures.reused_tokens == 25
    assert third.tokens == opened(folder).write(other).tokens
    assert writer.write([200, *PROMPT]).figures.reused_tokens == 0


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_a_model_that_would_keep_no_cache_answers_as_one_that_would(name: str, request: pytest.FixtureRequest) -> None:
    """Training often leaves use_cache false in a model's configuration."""
    folder = request.getfixturevalue(name)
    writer = opened(folder)
    model = load(folder, dtype=torch.float32)
    model.config.use_cache = model.generation_config.use_cache = False
    other = Writer(model, writer.tokenizer, Sampling(max_new_tokens=12), "packed")
    first, second = PROMPT, [*PROMPT, *opened(folder).write(PROMPT).tokens, 5, 6]
    for text in (first, second):
        found, expected = other.write(text), writer.write(text)
        assert found.tokens == expected.tokens and found.figures.cache_bytes == expected.figures.cache_bytes
    assert found.figures.reused_tokens == len(PROMPT) + 11


def test_a_sliding_window_starts_anew(tiny_tokenizer_folder: Path) -> None:
    from nestquant_cli.models.source import Source, load_tokenizer

    tokenizer = load_tokenizer(Source("folder", str(tiny_tokenizer_folder), None, "tiny"))
    writer = Writer(make_model("mistral"), tokenizer, Sampling(max_new_tokens=5))
    first = writer.write(PROMPT)
    second = writer.write([*PROMPT, *first.tokens, 5])
    assert second.figures.reused_tokens == 0
    fresh = Writer(make_model("mistral"), tokenizer, Sampling(max_new_tokens=5))
    assert second.tokens == fresh.write([*PROMPT, *first.tokens, 5]).tokens


def test_a_seed_repeats_a_draw(talking: Path) -> None:
    draw: Callable[[int], list[int]] = lambda seed: opened(talking, temperature=2.0, seed=seed).write(PROMPT).tokens  # noqa: E731
    assert draw(1) == draw(1) != draw(2)


def test_the_text_ends_where_the_model_does(talking: Path) -> None:
    writer = opened(talking)
    assert writer.room == CONTEXT - 12
    answer = writer.write([5] * (CONTEXT - 3))
    assert len(answer.tokens) == 3 and answer.ending == "context"
    assert writer.write(PROMPT).ending == "max_new_tokens"
    assert opened(talking, new=2 * CONTEXT).room == CONTEXT // 2
    for ids, told in (([5] * CONTEXT, "256 tokens"), ([], "empty")):
        with pytest.raises(NestQuantError, match=told):
            writer.write(ids)


def test_an_interrupted_text_is_kept_and_its_cache_is_not(talking: Path) -> None:
    writer, pieces = opened(talking, new=50), list[str]()

    def stop(text: str) -> None:
        pieces.append(text)
        raise KeyboardInterrupt

    answer = writer.write(PROMPT, stop)
    assert answer.interrupted and 0 < len(answer.tokens) < 50
    assert answer.text.startswith("".join(pieces)) and answer.figures.cache_bytes is None
    again = writer.write(PROMPT)
    assert again.figures.reused_tokens == 0 and again.tokens[: len(answer.tokens)] == answer.tokens


def test_an_end_token_ends_a_text_even_at_the_last_place(talking: Path) -> None:
    free = opened(talking).write(PROMPT).tokens
    writer = opened(talking, new=3)
    writer.config.eos_token_id = [free[2]]
    answer = writer.write(PROMPT)
    assert answer.tokens == free[:3] and answer.ending == "end of text"
