"""`nestquant report` on the tiny model: what is on the page is what the other commands say."""

import base64
import builtins
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.report.page import html
from nestquant_cli.report.page_data import PageData, Sample, read_page_data
from nestquant_cli.storage.files import read_json, write_json
from tests.families import Outcome, error_line, in_process

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


def test_the_page_holds_figures_pictures_and_samples(
    nestquant: Callable[..., Outcome], talking: Path, talking_packed: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    text = ["--dataset", tiny_text_file, "--seqlen", 64, "--max-windows", 2]
    assert (
        nestquant("eval-ppl", talking_packed, *text, "--baseline", talking, "--output", tmp_path / "ppl.json")[0] == 0
    )
    found = read_json(tmp_path / "ppl.json")
    folder = tmp_path / "out"
    words = ["--prompt", "The lattice", "--max-new-tokens", 5, "--output", folder]
    code, output, error = nestquant("report", talking_packed, *text, "--baseline", talking, *words)
    assert code == 0, error
    assert f"result: {folder / 'report.html'}" in output
    text_of_page = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text_of_page)
    assert f"reference: {talking.name}" in text_of_page
    for key in ("perplexity", "baseline_perplexity", "top1_agreement"):
        assert f"{found[key]:.4f}" in text_of_page
    assert f"{inspect(talking_packed).bits_per_weight:.4f}" in text_of_page and "The lattice …" in text_of_page
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert sorted(pictures) == ["betas.png", "bits.png", "errors.png", "perplexity.png"]
    embedded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources]
    assert sorted(embedded) == sorted(pictures.values())  # and nothing is fetched from elsewhere
    for png in pictures.values():
        assert png.startswith(b"\x89PNG") and min(struct.unpack(">II", png[16:24])) > 300
    code, _, error = nestquant("report", talking_packed, "--output", folder)
    assert code == 2 and "is not empty" in error_line(error)


def test_contents_are_what_was_recorded(talking_packed: Path) -> None:
    found = read_page_data(talking_packed)
    records = read_json(talking_packed / "quantization_report.json")["matrices"]
    worst, record = found.most_damaged(3)[0]
    assert record["hessian_error"] == max(each["hessian_error"] for each in records.values())
    assert records[worst] == record
    first = [each["hessian_error"] for name, each in records.items() if name.startswith("model.layers.0.")]
    assert found.layer_errors("hessian_error")[0] == pytest.approx(sum(first) / len(first)) and len(first) == 7
    assert all(4 < bits < 5 for bits in found.layer_bits())
    assert set(found.betas()) == {name.rpartition(".")[2] for name in records}
    assert all(sum(shares) == pytest.approx(1) for shares in found.betas().values())


def test_names_and_texts_cannot_become_markup(talking_packed: Path) -> None:
    found = read_page_data(talking_packed)
    own = PageData(found.inspection, found.records, None, "<b>", [Sample("<i>", "<script>alert(1)</script>")])
    text = html("<u>", own, {})
    Page(text)
    assert not re.search(r"<(script|i|u)>", text)
    assert "&lt;script&gt;" in text and "<p>&lt;b&gt; …</p>" in text and "<h1>&lt;u&gt;</h1>" in text
    assert "come with --baseline" in text


def test_without_matplotlib_the_tables_come_alone(
    nestquant: Callable[..., Outcome], talking_packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    code, _, error = nestquant("report", talking_packed, "--prompt", "", "--output", tmp_path / "out")
    assert code == 0, error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_what_is_no_checkpoint_is_refused(
    nestquant: Callable[..., Outcome], talking: Path, talking_packed: Path, tmp_path: Path
) -> None:
    code, _, error = nestquant("report", talking, "--output", tmp_path / "out")
    assert code == 2 and "not a packed checkpoint" in error_line(error) and not (tmp_path / "out").exists()
    import shutil

    copy = Path(shutil.copytree(talking_packed, tmp_path / "copy"))
    write_json(copy / "quantization_report.json", {})
    with pytest.raises(NestQuantError, match="has no record of model"):
        read_page_data(copy)
