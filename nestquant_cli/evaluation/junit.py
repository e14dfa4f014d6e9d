"""Quality gates as a JUnit XML file, which CI systems show as tests: one test case per gate."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import NestQuantError
from ..storage.files import replacing
from .gates import NOT_EVALUATED, Verdict


def refuse_no_gates(junit: Path | None, gates: object, option: str) -> None:
    """Refuses a JUnit file that would have no test case.

    Args:
        junit: path of the file, or None for no file.
        gates: gates that the user gave, None or empty for none.
        option: name of the option that gives gates.

    Raises:
        NestQuantError: a file, but no gates.
    """
    if junit is not None and gates in (None, (), []):
        raise NestQuantError("--junit has no gate to report", NOT_EVALUATED, f"give {option}, or leave --junit out")


def write_junit(path: Path, command: str, model: str, verdicts: Sequence[Verdict], seconds: float) -> None:
    """Writes one test suite with a test case for every gate. The text of a failure has value and threshold.

    Args:
        path: file to write; an existing one is replaced.
        command: command that evaluated, "eval-ppl".
        model: name of the model.
        verdicts: verdict of each gate, in order.
        seconds: time of the whole evaluation, which is the time of the suite.

    Raises:
        NestQuantError: the file cannot be written.
    """
    failed = sum(not verdict.passed for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "errors": "0", "time": f"{seconds:.1f}"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": _plain(f"nestquant {command} {model}"), **counts})
    for verdict in verdicts:
        names = {"classname": _plain(f"nestquant.{command}.{model}"), "name": _plain(verdict.gate)}
        case = ET.SubElement(suite, "testcase", names)
        if verdict.passed:
            ET.SubElement(case, "system-out").text = _plain(verdict.figures)
        else:
            text = f"{verdict.figures}\ngate: {verdict.gate}\nmodel: {model}"
            message = {"message": _plain(verdict.figures), "type": "gate"}
            ET.SubElement(case, "failure", message).text = "\n".join(map(_plain, text.split("\n")))
    ET.indent(suites)
    with replacing(path) as temporary:
        ET.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)


def _plain(text: str) -> str:
    """The text without characters that XML cannot hold; names come from users and files."""
    return "".join(character for character in text if character.isprintable())
