from pathlib import Path

import pytest

from nestquant_cli.comparison.state import State
from nestquant_cli.errors import NestQuantError


def test_what_was_put_is_there_for_the_same_key_in_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    State(folder).put("scores", "w4", {"of": 1}, [1.5])
    again = State(folder)
    assert again.get("scores", "w4", {"of": 1}) == [1.5]
    assert again.get("scores", "w4", {"of": 2}) is None and again.get("tasks", "w4", {"of": 1}) is None
    again.put("scores", "w4", {"of": 2}, [])
    assert State(folder).get("scores", "w4", {"of": 1}) is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NestQuantError, match="is not empty"):
        State(tmp_path)
