"""The automatic batch on a computer without a GPU, where too large a batch would end the process."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from nestquant_cli.evaluation.lm_eval_model import LARGEST_BATCH, largest_batch

SIZES = SimpleNamespace(vocab_size=32000, hidden_size=4096)


@given(st.integers(1, 1 << 17), st.integers(0, 1 << 42))
def test_a_batch_fits_in_what_is_free(tokens: int, free: int) -> None:
    found = largest_batch(SIZES, tokens, free)
    assert 1 <= found <= LARGEST_BATCH
    assert found == 1 or found * tokens * SIZES.vocab_size * 4 * 3 <= free / 4
    assert largest_batch(SIZES, tokens, 2 * free) >= found >= largest_batch(SIZES, 2 * tokens, free)


def test_much_memory_takes_the_largest_batch() -> None:
    assert largest_batch(SIZES, 100, 1 << 40) == LARGEST_BATCH
    assert largest_batch(SIZES, 100, 0) == 1
