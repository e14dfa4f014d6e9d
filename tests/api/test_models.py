"""Loading and scoring from Python: what is refused before a model is read."""

from collections.abc import Callable
from typing import Any

import pytest

import nestquant_cli


@pytest.mark.parametrize("function", [nestquant_cli.load, nestquant_cli.evaluate])
def test_a_form_that_does_not_exist_is_refused_before_the_model_is_looked_for(function: Callable[..., Any]) -> None:
    with pytest.raises(nestquant_cli.NestQuantError, match=r"no resident form 'packd'.*packed"):
        function("no/such/model", resident="packd")
