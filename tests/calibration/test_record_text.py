import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.text import load_text


def test_conversations_become_text_by_the_template(tmp_path: Path, talking: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talking)
    talk = [[{"role": "user", "content": "hi\r\n"}, {"role": "assistant", "content": "hello"}]] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": 1, "messages": each}) for each in talk))
    (tmp_path / "b.json").write_text(json.dumps([{"talk": each} for each in talk]))
    one = load_text(str(tmp_path / "a.jsonl"), "train", tokenizer)
    other = load_text(str(tmp_path / "b.json"), "train", tokenizer, "talk")
    assert one.text == other.text == "u: hi\n\na: hello\n" * 2
    assert (one.field, other.field) == ("messages", "talk")
    assert one.template == other.template == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "robot", "content": "beep"}]}))
    with pytest.raises(NestQuantError, match=r"template refuses the messages of .*line 1 \(no robots\)"):
        load_text(str(tmp_path / "a.jsonl"), "train", tokenizer)


def test_a_template_that_writes_the_date_makes_the_same_text_every_day(tmp_path: Path, talking: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talking)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}{{ messages[0]['content'] }}"
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "!"}]}))
    assert load_text(str(tmp_path / "a.jsonl"), "train", tokenizer).text == "2025-01-01!"
