import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestquant_cli.base.printable import NOT_SHOWN, escaped, shown

HOSTILE = ["\x1b[2J", "\x9b2J", "a\rb", "\x07", "\x00", "\x7f", "\u202egpj.exe", "\u2028", "\ud800", "\x1b]0;title\x07"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_steers_a_terminal_does_not_come_through(text: str) -> None:
    for safe in (escaped(text), shown(text)):
        assert not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or each == "\u202e" for each in safe)
        assert safe != text
    assert NOT_SHOWN in shown(text) and "\\" in escaped(text)


@pytest.mark.parametrize("text", ["日本\u3000語", "10\u00a0°C", "👩\u200d🚀", "ने\u200dपाल", "שלום", "naïve — …"])
def test_text_of_any_language_stays(text: str) -> None:
    assert escaped(text) == text and shown(text) == text


@given(st.text())
def test_ordinary_characters_stay_and_others_can_be_printed(text: str) -> None:
    safe = escaped(text)
    assert escaped(safe) == safe and len(shown(text)) == len(text)
    assert all(each in safe for each in text if each.isprintable())
    safe.encode("utf-8")


def test_line_ends_stay_where_they_are_wanted() -> None:
    assert shown("a\n\tb") == "a\n\tb" == escaped("a\n\tb", keep="\n\t")
    assert escaped("a\nb") == "a\\nb"
