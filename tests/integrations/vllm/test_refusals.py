"""Errors of the plugin are one line that says where and what to do, without vLLM."""

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.vllm.names import Rows
from nestquant_cli.integrations.vllm.pieces import Piece
from nestquant_cli.integrations.vllm.refusals import NotFollowedError, not_followed, refuse_lost_biases
from nestquant_cli.modules.layout import LinearLayout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AttributeError("'QKVParallelLinear' object has no attribute 'weight'"), "has no attribute 'weight'"),
        (KeyError("layers.0.mixer.in_proj.words"), "KeyError: 'layers.0.mixer.in_proj.words'"),
        (AssertionError(), "stopped at model.layers.3: AssertionError; "),
        (ValueError("one\ntwo\x1b[31m"), "ValueError: one; "),
    ],
)
def test_where_vllm_stopped(error: Exception, said: str) -> None:
    found = not_followed("model.layers.3", error)
    assert isinstance(found, NotFollowedError) and "vLLM stopped at model.layers.3: " in str(found)
    assert said in str(found) and "\n" not in str(found) and len(str(found)) < 500


def test_before_any_layer() -> None:
    assert "stopped at the start: KeyError" in str(not_followed("", KeyError("factor")))


def test_a_bias_that_vllm_has_no_place_for() -> None:
    plain, biased = (
        Piece(Rows(name, (0,), 8), LinearLayout(8, 8, bias, "x", None)) for name, bias in (("q", False), ("k", True))
    )
    refuse_lost_biases([plain, biased], object())
    refuse_lost_biases([plain], None)
    with pytest.raises(NestQuantError, match="k has a bias, and its layer in vLLM has none"):
        refuse_lost_biases([plain, biased], None)
