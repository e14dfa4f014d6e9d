from pathlib import Path

import pytest

from nestquant_cli.checkpoint.output import Output
from nestquant_cli.pipeline.sensitivities_file import (
    PICTURE,
    SENSITIVITIES,
    Allocation,
    recorded_words,
    save_sensitivities,
)
from nestquant_cli.quantization.allocation import INPUTS, Sensitivity
from nestquant_cli.storage.files import read_json


def test_a_resumed_run_reads_the_bits_that_were_saved(tmp_path: Path) -> None:
    words = {"layers.0.q_proj": 30, "layers.0.v_proj": 34}
    found = {name: Sensitivity(64, cost) for name, cost in zip(words, (0.5, 2.0), strict=True)}
    matrices = Allocation(found, words, 32)
    inputs = Allocation({"layers.0.q_proj": Sensitivity(8, 1.0)}, {"layers.0.q_proj": 64}, 32, INPUTS)
    with Output(tmp_path / "out", {}, 1, resume=True) as output:
        assert recorded_words(output) is None
        save_sensitivities(matrices, inputs, "hash", output)
        assert recorded_words(output) == (words, {"layers.0.q_proj": 64})
    saved = read_json(tmp_path / "out" / SENSITIVITIES)
    assert saved["average_bits"] == 4.0 and saved["tokens_sha256"] == "hash"
    assert saved["expected_kl"] == pytest.approx(0.5 * 0.00865 + 2.0 * 0.00496)
    assert "expected_kl_untied" not in saved
    assert saved["expected_kl_uniform"] == pytest.approx(2.5 * 0.00622)
    assert saved["average_inputs"] == pytest.approx(
        {"average_bits": 8.0, "expected_kl": INPUTS[64], "expected_kl_uniform": 0.00622}
    )
    assert (tmp_path / "out" / PICTURE).is_file()


def test_what_is_not_mixed_is_not_there(tmp_path: Path) -> None:
    words = {"layers.0.q_proj": 30}
    with Output(tmp_path / "out", {}, 1, resume=True) as output:
        save_sensitivities(None, Allocation({"layers.0.q_proj": Sensitivity(8, 1.0)}, words, 32, INPUTS), "h", output)
        assert recorded_words(output) == ({}, words)
    assert {"matrices", "average_bits"}.isdisjoint(read_json(tmp_path / "out" / SENSITIVITIES))
