"""Whatever a text holds, Markdown shows it as one cell of one row."""

import re

from hypothesis import given
from hypothesis import strategies as st

from nestquant_cli.base.markdown import escaped, table

NASTY = st.text(alphabet=st.one_of(st.sampled_from("|\\`*_<>&[]~\n\r\x1b\u2028\u202e a1"), st.characters()))


@given(st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=4))
def test_a_table_has_its_rows_and_cells_whatever_is_in_them(rows: list[tuple[str, str]]) -> None:
    lines = table(("head", "value"), rows)
    assert len(lines) == 2 + len(rows)
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
        assert line.isprintable() and "<" not in line


@given(NASTY)
def test_no_markup_is_left(text: str) -> None:
    found = escaped(text)
    assert found.isprintable() and not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|~]", found)
    assert not re.search("[<>]", found) and not re.search("&(?!amp;|lt;|gt;)", found)


def test_ordinary_words_stay_as_they_are() -> None:
    for text in ("weight_bits", "0.01", "configs/w4.yaml", "3 × 2048 tokens of wikitext2, seed 0"):
        assert escaped(text) == text
