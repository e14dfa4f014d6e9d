from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.generation.generator import TextGenerator, load_generator
from nestquant_cli.generation.sampling import Sampling
from nestquant_cli.models.source import resolve
from tests.families import CONTEXT, load, make_model, random_ids

PROMPT = random_ids(1, 20)[0].tolist()


def opened(folder: Path, new: int = 12, dtype: str = "float32", **settings: Any) -> TextGenerator:
    return load_generator(resolve(str(folder)), Sampling(max_new_tokens=new, **settings), "packed", dtype, "cpu")


def by_hand(folder: Path, ids: list[int], new: int) -> list[int]:
    """The likeliest tokens, each from a plain generate() of transformers."""
    model = load(folder, dtype=torch.float32)
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=new, do_sample=False)[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_the_text_is_that_of_generate_and_comes_in_pieces(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    generator, pieces = opened(folder), list[str]()
    answer = generator.generate(PROMPT, pieces.append)
    assert answer.tokens == by_hand(folder, PROMPT, 12)
    assert "".join(pieces) == answer.text == generator.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    assert not answer.interrupted


def test_figures_count_what_is_there(talking: Path, talking_packed: Path) -> None:
    plain, packed = (opened(folder).generate(PROMPT).statistics for folder in (talking, talking_packed))
    for statistics in (plain, packed):
        assert (statistics.prompt_tokens, statistics.reused_tokens, statistics.new_tokens) == (20, 0, 12)
        assert statistics.tokens_per_second and statistics.tokens_per_second > 0
        assert "tokens/s" in statistics.line() and statistics.peak_bytes > 1 << 26
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
    generator = opened(folder)
    first = generator.generate(PROMPT)
    longer = [*PROMPT, *first.tokens, 5, 6]
    second = generator.generate(longer)
    assert second.statistics.reused_tokens == len(PROMPT) + 11
    assert second.statistics.prompt_tokens == len(longer) - len(PROMPT) - 11
    assert second.tokens == opened(folder).generate(longer).tokens
    other = [*longer[:25], 9, 10]
    third = generator.generate(other)
    assert third.statistics.reused_tokens == 25
    assert third.tokens == opened(folder).generate(other).tokens
    assert generator.generate([200, *PROMPT]).statistics.reused_tokens == 0


@pytest.mark.parametrize("name", ["talking", "talking_packed"])
def test_a_model_that_would_keep_no_cache_answers_as_one_that_would(name: str, request: pytest.FixtureRequest) -> None:
    """Training often leaves use_cache false in a model's configuration."""
    folder = request.getfixturevalue(name)
    generator = opened(folder)
    model = load(folder, dtype=torch.float32)
    model.config.use_cache = model.generation_config.use_cache = False
    other = TextGenerator(model, generator.tokenizer, Sampling(max_new_tokens=12), "packed")
    first, second = PROMPT, [*PROMPT, *opened(folder).generate(PROMPT).tokens, 5, 6]
    for text in (first, second):
        found, expected = other.generate(text), generator.generate(text)
        assert found.tokens == expected.tokens and found.statistics.cache_bytes == expected.statistics.cache_bytes
    assert found.statistics.reused_tokens == len(PROMPT) + 11


def test_a_sliding_window_starts_anew(tiny_tokenizer_folder: Path) -> None:
    from nestquant_cli.models.source import Source, load_tokenizer

    tokenizer = load_tokenizer(Source("folder", str(tiny_tokenizer_folder), None, "tiny"))
    generator = TextGenerator(make_model("mistral"), tokenizer, Sampling(max_new_tokens=5))
    first = generator.generate(PROMPT)
    second = generator.generate([*PROMPT, *first.tokens, 5])
    assert second.statistics.reused_tokens == 0
    fresh = TextGenerator(make_model("mistral"), tokenizer, Sampling(max_new_tokens=5))
    assert second.tokens == fresh.generate([*PROMPT, *first.tokens, 5]).tokens


def test_a_seed_repeats_a_draw(talking: Path) -> None:
    draw: Callable[[int], list[int]] = lambda seed: opened(talking, temperature=2.0, seed=seed).generate(PROMPT).tokens  # noqa: E731
    assert draw(1) == draw(1) != draw(2)


def test_the_text_ends_where_the_model_does(talking: Path) -> None:
    generator = opened(talking)
    assert generator.room == CONTEXT - 12
    answer = generator.generate([5] * (CONTEXT - 3))
    assert len(answer.tokens) == 3 and answer.ending == "context"
    assert generator.generate(PROMPT).ending == "max_new_tokens"
    assert opened(talking, new=2 * CONTEXT).room == CONTEXT // 2
    for ids, message in (([5] * CONTEXT, "256 tokens"), ([], "empty")):
        with pytest.raises(NestQuantError, match=message):
            generator.generate(ids)


def test_an_interrupted_text_is_kept_and_its_cache_is_not(talking: Path) -> None:
    generator, pieces = opened(talking, new=50), list[str]()

    def stop(text: str) -> None:
        pieces.append(text)
        raise KeyboardInterrupt

    answer = generator.generate(PROMPT, stop)
    assert answer.interrupted and 0 < len(answer.tokens) < 50
    assert answer.text.startswith("".join(pieces)) and answer.statistics.cache_bytes is None
    again = generator.generate(PROMPT)
    assert again.statistics.reused_tokens == 0 and again.tokens[: len(answer.tokens)] == answer.tokens


def test_an_end_token_ends_a_text_even_at_the_last_place(talking: Path) -> None:
    free = opened(talking).generate(PROMPT).tokens
    generator = opened(talking, new=3)
    generator.config.eos_token_id = [free[2]]
    answer = generator.generate(PROMPT)
    assert answer.tokens == free[:3] and answer.ending == "end of text"
