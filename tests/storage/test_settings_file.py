import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.storage.settings_file import read_settings


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "settings.yaml"


def read(path: Path, text: str, words: bool = False) -> dict[str, Any]:
    path.write_text(text, encoding="utf-8")
    return read_settings(path, words)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10),
        ("-7", -7),
        ("1_000", 1000),
        ("0", 0),
        ("1e-3", 0.001),
        ("1.0e-05", 1e-5),
        ("2.", 2.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("no", False),
        ("null", None),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'4'", "4"),
        ("wikitext2", "wikitext2"),
        ("[1, 010]", [1, 10]),
    ],
)
def test_numbers_are_decimal_as_on_the_command_line(path: Path, written: str, value: Any) -> None:
    found = read(path, f"a: {written}\n")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["010", "1.50", "true", "yes", "1e3", "007.json", "2024-01-01"])
def test_words_are_left_as_they_are_written(path: Path, text: str) -> None:
    assert read(path, f"a: {text}\nb: [{text}]\nc: null\n", words=True) == {"a": text, "b": [text], "c": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "has 'a' and, in line 2, 'a'"),
        ("max-windows: 1\nmax_windows: 2\n", "has 'max-windows' and, in line 2, 'max_windows'"),
        ("a: {b-c: 1, b_c: 2}\n", "has 'b-c' and"),
        ("a: [{b: 1, b: 2}]\n", "has 'b' and"),
        ("a: 1\nbits:\n", "no value for 'bits' in line 2"),
        ("a: {b: }\n", "no value for 'b'"),
        ("a: !!int abc\n", "cannot be read as YAML"),
        ("a: !!python/object:os.system x\n", "cannot be read as YAML"),
        ("a: *b\n", "cannot be read as YAML"),
        ("? [a]\n: 1\n", "cannot be read as YAML"),
        ("just words\n", "is not a YAML mapping"),
    ],
)
@pytest.mark.parametrize("words", [False, True])
def test_what_is_twice_or_empty_or_no_yaml_is_refused(path: Path, text: str, message: str, words: bool) -> None:
    if words and "!!int" in text:
        text, message = "a: [\n", "cannot be read as YAML"
    with pytest.raises(NestQuantError, match=message):
        read(path, text, words)


def test_merged_mappings_may_be_overridden(path: Path) -> None:
    found = read(path, "base: &base {q: 14, k: 4}\nweight_code: {<<: *base, k: 2}\n")
    assert found["weight_code"] == {"q": 14, "k": 2}


# 1e3 is text to YAML 1.1, and PyYAML does not read back the line break U+0085 that it writes.
texts = st.text(max_size=8).filter(lambda text: not re.fullmatch(r"[-+.0-9eE_]+", text) and "\x85" not in text)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts)
names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


@given(st.dictionaries(names, st.one_of(scalars, st.dictionaries(names, scalars, max_size=3)), min_size=1, max_size=4))
def test_what_pyyaml_writes_is_read_as_it_was(path: Path, settings: dict[str, Any]) -> None:
    assert read(path, yaml.safe_dump(settings, allow_unicode=True)) == settings
