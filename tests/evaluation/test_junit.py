import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.evaluation.gates import Verdict
from nestquant_cli.evaluation.junit import refuse_no_gates, write_junit

VERDICTS = [
    Verdict("perplexity <= 7", "perplexity 7.1235 > 7", False),
    Verdict("piqa acc >= 0.7", "piqa acc 0.7500 >= 0.7", True),
]


def test_each_gate_is_a_test_case_and_a_failure_has_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gates.xml"
    write_junit(path, "eval-ppl", "a<b>\x1b&c", VERDICTS, 12.34)
    suites = ET.parse(path).getroot()
    (suite,) = suites
    assert suites.tag == "testsuites" and suite.tag == "testsuite"
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "time")} == {
        "tests": "2",
        "failures": "1",
        "errors": "0",
        "time": "12.3",
    }
    failed, passed = suite.findall("testcase")
    assert (failed.get("classname"), failed.get("name")) == ("nestquant.eval-ppl.a<b>&c", "perplexity <= 7")
    failure = failed.find("failure")
    assert failure is not None and failure.get("message") == "perplexity 7.1235 > 7"
    assert failure.text and failure.text.splitlines() == [
        "perplexity 7.1235 > 7",
        "gate: perplexity <= 7",
        "model: a<b>&c",
    ]
    assert passed.find("failure") is None and passed.findtext("system-out") == "piqa acc 0.7500 >= 0.7"


def test_a_file_without_gates_is_refused(tmp_path: Path) -> None:
    refuse_no_gates(None, None, "--fail-above")
    refuse_no_gates(tmp_path, 7.0, "--fail-above")
    refuse_no_gates(tmp_path, 0.0, "--fail-above")
    for gates in (None, []):
        with pytest.raises(NestQuantError, match="give --fail-above"):
            refuse_no_gates(tmp_path, gates, "--fail-above")
