"""The processor's kind is recorded, and half a run is not finished on one of another kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base import processor
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.base.processor import machine, processor_kind
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import calibrate, quantize
from nestquant_cli.pipeline.quantize_and_tune import quantize_and_tune
from nestquant_cli.pipeline.recipe import Recipe


class Interrupted(BaseException):
    """As a kill would be."""


def test_the_kind_is_what_rounding_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = processor_kind()
    assert kind == processor_kind() == json.loads(json.dumps(kind))
    assert set(kind) == {"machine", "torch", "numba", "target", "vectors"} and all(kind.values())
    assert machine("cpu") == {"device": "cpu", "gpu": None, "processor": kind}
    monkeypatch.setenv("NUMBA_CPU_NAME", "nocona")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse3,-avx2,+fma,+rtm")
    other = processor_kind()
    assert (other["target"], other["vectors"]) == ("nocona", "fma")


@pytest.mark.parametrize("run", [calibrate, quantize, quantize_and_tune])
def test_a_run_is_not_finished_on_another_kind(
    run: Callable[..., Any],
    tiny_model_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, text = resolve(str(tiny_model_folder)), str(tiny_text_file)
    tune = {"steps": 2, "seqlen": 32} if run is quantize_and_tune else None
    recipe = Recipe(dataset=text, samples=2, seqlen=32, tune=tune)

    def dying(*_: Any, **__: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        for place in ("pipeline.quantize.write_rest", "calibration.store_writer.CalibrationWriter.finish"):
            patch.setattr(f"nestquant_cli.{place}", dying)
        with pytest.raises(Interrupted):
            run(source, recipe, tmp_path / "out", "cpu")
    monkeypatch.setattr(processor, "processor_kind", lambda: processor_kind() | {"torch": "NONE"})
    with pytest.raises(NestQuantError, match=r"an unfinished run with processor\.torch \w+ instead of NONE"):
        run(source, recipe, tmp_path / "out", "cpu")
