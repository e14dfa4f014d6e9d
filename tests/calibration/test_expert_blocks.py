from hypothesis import given
from hypothesis import strategies as st

from nestquant_cli.calibration.expert_blocks import SUM_BYTES, blocks_of


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=4), st.integers(0, 1 << 15))
def test_blocks_have_every_expert_once_and_fit(inputs: list[tuple[int, int]], budget: int) -> None:
    blocks = blocks_of(inputs, budget)
    for number, (_, experts) in enumerate(inputs):
        assert [expert for block in blocks for expert in block[number]] == list(range(experts))
    for block in blocks:
        sizes = [SUM_BYTES * (-(-features // 8) * 8) ** 2 for features, _ in inputs]
        total = sum(size * len(experts) for size, experts in zip(sizes, block, strict=True))
        assert total <= budget or sum(map(len, block)) == 1
