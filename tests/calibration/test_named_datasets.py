from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.named_datasets import C4_DOCUMENTS, C4_FILES, named_documents
from nestquant_cli.calibration.text import load_text


def test_unknown_names_and_splits_are_refused() -> None:
    with pytest.raises(NestQuantError, match="'wikitext3' is not a data set"):
        load_text("wikitext3", "test")
    with pytest.raises(NestQuantError, match="no split 'tset'"):
        load_text("demo", "tset")


@pytest.mark.parametrize("name", ["wikitext2", "c4", "some/data", "some/data:en"])
def test_a_data_set_without_a_connection_names_the_alternative(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("nestquant_cli.models.hub.unreachable", lambda: "no network")
    with pytest.raises(NestQuantError, match=r"(no network).*local \.txt or \.jsonl"):
        load_text(name, "test")


def test_a_misspelled_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(NestQuantError, match="did you mean 'wikitext2'"):
        load_text("wikitext-2", "train")


def test_of_c4_the_first_documents_of_one_file_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Rows:
        def take(self, count: int) -> list[dict[str, str]]:
            asked["count"] = count
            return [{"text": "one"}, {"text": "two"}]

    def load(*repository: str, **arguments: Any) -> Rows:
        asked.update(arguments, repository=repository)
        return Rows()

    monkeypatch.setattr("datasets.load_dataset", load)
    assert named_documents("c4", "test") == (["one", "two"], "validation")  # it has no test split
    assert asked["repository"] == ("allenai/c4",) and asked["count"] == C4_DOCUMENTS["validation"]
    assert asked["data_files"] == {"validation": C4_FILES["validation"]} and asked["streaming"]
