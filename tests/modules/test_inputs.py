import copy
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.vectors import Rounded
from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels import for_device
from nestquant_cli.modules.inputs import InputQuantizer, padded_size
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, relative_error

CODE = ScaledCode(NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), unit=0.9 / 13 / 2)
MODES: list[Callable[[], AbstractContextManager[object]]] = [torch.no_grad, torch.inference_mode]


class Counting(InputQuantizer):
    """Counts how often something is rotated."""

    rotations = 0

    def code_tokens(self, x: Tensor) -> Rounded:
        self.rotations += 1
        return super().code_tokens(x)


@pytest.mark.parametrize("features", [64, 20, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coded_inputs_are_near_the_rotated_ones(features: int, dtype: torch.dtype) -> None:
    source = InputQuantizer(features, 5, CODE)
    x = gaussian(2, 3, features).to(dtype)
    coded = source(x)
    assert source.padded == padded_size(features) and source.padded % 8 == 0
    assert coded.values.dtype == torch.int8 and coded.values.shape == (6, source.padded)
    assert coded.scale is not None and coded.scale.shape == (6,)
    assert relative_error(source.unrotate(coded.dequantized()), x.reshape(6, features)) < 0.15


def test_without_a_code_the_input_is_only_rotated() -> None:
    source, x = InputQuantizer(20, 5, None), gaussian(4, 20)
    coded = source(x)
    assert coded.scale is None
    padded = torch.nn.functional.pad(x, (0, 4))
    torch.testing.assert_close(coded.dequantized(), padded @ rotation(24, 5).matrix().t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(source.unrotate(coded.values), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_one_rotation_serves_all_who_ask_with_the_same_tensor(
    mode: Callable[[], AbstractContextManager[object]],
) -> None:
    source = Counting(16, 0, CODE)
    with mode():
        x = gaussian(3, 16) + 0
        results = [source(x) for _ in range(3)]
        assert source.rotations == 1 and all(result is results[0] for result in results)
        other = x.clone()
        source(other)
        source(x)
        assert source.rotations == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_change_in_place_is_seen(mode: Callable[[], AbstractContextManager[object]]) -> None:
    source = Counting(16, 0, CODE)
    with mode():
        x = gaussian(3, 16) + 0
        before = source(x)
        x.mul_(-3)
        after = source(x)
        assert source.rotations == 2
        assert after.scale is not None and before.scale is not None
        torch.testing.assert_close(after.scale, 3 * before.scale)
        assert torch.equal(after.dequantized(), InputQuantizer(16, 0, CODE)(x).dequantized())


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_released_with_its_input(mode: Callable[[], AbstractContextManager[object]]) -> None:
    source = InputQuantizer(16, 0, CODE)
    with mode():
        x = gaussian(3, 16) + 0
        result = weakref.ref(source(x).values)
        alive = weakref.ref(x)
        gc.collect()
        assert result() is not None
        del x
        gc.collect()
    assert alive() is None and result() is None


def test_no_tokens() -> None:
    coded = InputQuantizer(16, 0, CODE)(torch.zeros(2, 0, 16))
    assert coded.values.shape == (0, 16)


def test_copies_share_settings_and_not_results() -> None:
    source, x = Counting(16, 0, CODE), gaussian(3, 16)
    source(x)
    twin = copy.deepcopy(source)
    assert (twin.features, twin.seed, twin.code) == (16, 0, CODE)
    twin(x)
    assert twin.rotations == 1


def test_threads_get_what_was_made_of_their_own_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """48,000 calls by four threads that interrupt each other every ten microseconds."""
    source = InputQuantizer(8, None, None)
    together = threading.Barrier(4)

    def work(number: int) -> int:
        together.wait()
        wrong = 0
        for call in range(6000):
            value = float(6000 * number + call)
            x = torch.full((1, 8), value)
            results = [source.once(x, key, lambda tokens: tokens + 1) for key in ("one", "other")]
            wrong += sum(float(result[0, 0]) != value + 1 for result in results)
        return wrong

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [0, 0, 0, 0]
    finally:
        sys.setswitchinterval(before)


def test_what_a_thread_made_goes_with_the_input_wherever_that_is_dropped() -> None:
    source, inputs = InputQuantizer(16, 0, CODE), [gaussian(3, 16) + 0]
    with ThreadPoolExecutor(1) as pool:
        values = pool.submit(lambda: weakref.ref(source(inputs[0]).values)).result()
        assert values() is not None
        inputs.clear()
        gc.collect()
        assert values() is None


@pytest.mark.parametrize("source", [(64, 5, 1), (60, 5, 1), (64, 5, 2), (64, None, 1), (200, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_of_16_bits_are_the_rotated_input(source: tuple[int, int | None, int], dtype: torch.dtype) -> None:
    features, seed, parts = source
    quantizer = InputQuantizer(features, seed, None, parts=parts)
    x, kernels = gaussian(2, 3, features).to(dtype), for_device(torch.device("cpu"))
    made = quantizer.int16(x, kernels)
    assert quantizer.int16(x, kernels)[0] is made[0]  # for whoever asks next
    ones = torch.eye(quantizer.padded, dtype=torch.int8)
    scale = torch.ones(quantizer.padded).bfloat16().view(torch.int16)
    y = kernels.int16_product(*made, ones, scale, torch.float32)
    assert relative_error(y, quantizer.rotate(x.float())) < 1e-4
