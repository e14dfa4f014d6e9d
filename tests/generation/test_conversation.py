import logging
from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.generation.conversation import Conversation
from nestquant_cli.generation.generator import TextGenerator, load_generator
from nestquant_cli.generation.sampling import Sampling
from nestquant_cli.models.source import resolve


def generator(folder: Path, new: int = 8) -> TextGenerator:
    return load_generator(resolve(str(folder)), Sampling(max_new_tokens=new), "auto", "float32", "cpu")


def test_history_goes_through_the_template(talking_packed: Path) -> None:
    own = generator(talking_packed)
    talk, prompts = Conversation(own, "be brief"), list[str]()
    real = own.generate

    def recorded(ids: list[int], show: object) -> object:
        prompts.append(own.tokenizer.decode(ids))
        return real(ids)

    own.generate = recorded  # type: ignore[method-assign, assignment]
    first, second = talk.say("hello"), talk.say("again")
    assert prompts[0] == "s: be brief\nu: hello\na: "
    assert prompts[1] == f"s: be brief\nu: hello\na: {first.text}\nu: again\na: "
    assert [each["role"] for each in talk.history] == ["system", "user", "assistant", "user", "assistant"]
    assert talk.history[-1]["content"] == second.text
    talk.reset()
    talk.say("hello")
    assert prompts[2] == prompts[0]


def test_the_oldest_messages_go_when_it_grows_too_long(talking: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nestquant")
    talk = Conversation(generator(talking), "first")
    for number in range(12):
        talk.say(f"question {number} about the lattice")
    roles = [each["role"] for each in talk.history]
    assert roles[:2] == ["system", "user"] and len(roles) < 25
    assert talk.history[-2]["content"] == "question 11 about the lattice"
    before = list(talk.history)
    assert "oldest messages are left out" in caplog.text
    caplog.clear()
    with pytest.raises(NestQuantError, match="the model takes 256"):
        talk.say("word " * 300)
    assert talk.history == before and not caplog.text


def test_answers_longer_than_the_context_leave_the_conversation_its_half(talking: Path) -> None:
    talk = Conversation(generator(talking, new=1000))
    talk.history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    talk.say("hello")
    assert [each["content"] for each in talk.history][:3] == ["x", "y", "hello"]


def test_without_a_template_or_with_one_that_refuses(tiny_model_folder: Path, talking: Path) -> None:
    with pytest.raises(NestQuantError, match=r"no chat template; .*nestquant generate"):
        Conversation(generator(tiny_model_folder))
    talk = Conversation(generator(talking))
    talk.history = [{"role": "robot", "content": "beep"}]
    with pytest.raises(NestQuantError, match=r"refuses the conversation \(no robots\)"):
        talk.say("hello")
