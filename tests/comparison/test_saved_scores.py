from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.comparison.saved_scores import ComparisonState


def test_what_was_put_is_there_for_the_same_key_in_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    ComparisonState(folder).put("scores/w4", {"of": 1}, [1.5])
    again = ComparisonState(folder)
    assert again.get("scores/w4", {"of": 1}) == [1.5]
    assert again.get("scores/w4", {"of": 2}) is None and again.get("tasks/w4", {"of": 1}) is None
    again.put("scores/w4", {"of": 2}, [])
    assert ComparisonState(folder).get("scores/w4", {"of": 1}) is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NestQuantError, match="is not empty"):
        ComparisonState(tmp_path)


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with ComparisonState(folder) as state:
        state.put("scores/w4", {}, 1)
        with pytest.raises(NestQuantError, match=f"another command is writing {folder}"), ComparisonState(folder):
            pass
    assert sorted(path.name for path in folder.iterdir()) == ["progress.json"]
    with ComparisonState(folder) as state:
        assert state.get("scores/w4", {}) == 1


def test_a_comparison_that_comes_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ComparisonState(tmp_path / "new"):
        raise KeyboardInterrupt
    assert not (tmp_path / "new").exists()
