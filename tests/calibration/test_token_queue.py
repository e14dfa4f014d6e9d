import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.calibration.token_queue import TokenQueue


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 12), st.integers(1, 2))
def test_every_token_leaves_the_queue_once_with_its_exponent(counts: list[int], most: int, factors: int) -> None:
    queue, number, found = TokenQueue(most), 0, list[tuple[int, ...]]()

    def take() -> None:
        assert queue.tokens <= most
        for power, rows in queue.take():
            assert len(rows) == factors
            found.extend((power, *values) for values in zip(*(factor[:, 0].tolist() for factor in rows), strict=True))

    for count in counts:
        tokens = torch.arange(number, number + count)
        v = tokens[:, None].expand(-1, 3).to(torch.int8)
        for _ in queue.fill((tokens % 3 * 2).to(torch.int8), *[v] * factors):
            take()
        number += count
    take()
    assert not queue.tokens
    assert sorted(found, key=lambda token: token[1]) == [(n % 3 * 2, *[n] * factors) for n in range(number)]
