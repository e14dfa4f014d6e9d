"""A conversation with a model through its chat template."""

import logging
from typing import Any

from ..base.errors import NestQuantError, first_line
from .generator import Answer, Show, TextGenerator
from .sampling import NOT_GENERATED

logger = logging.getLogger("nestquant")


class Conversation:
    """The messages so far, and the model's next answer.

    Args:
        generator: the loaded model.
        system: system message before all others; None leaves it to the template.

    Raises:
        NestQuantError: the model has no chat template.
    """

    def __init__(self, generator: TextGenerator, system: str | None = None) -> None:
        if not generator.tokenizer.chat_template:
            raise NestQuantError(
                "the model has no chat template", NOT_GENERATED, "let it continue text with 'nestquant generate'"
            )
        self.generator = generator
        self._before = [] if system is None else [_message("system", system)]
        self.history: list[dict[str, str]] = list(self._before)

    def reset(self) -> None:
        """Forgets all messages but the system message."""
        self.history = list(self._before)

    def say(self, text: str, show: Show = lambda text: None) -> Answer:
        """Generates the model's answer to `text`; both become part of the history.

        If the history is too long for the model, its oldest pairs of question and answer are forgotten.

        Args:
            text: the user's message.
            show: called with each piece of the answer as it is generated.

        Raises:
            NestQuantError: the template refuses the messages, or the text alone is too long. The history is unchanged.
        """
        messages = [*self.history, _message("user", text)]
        ids = self._ids(messages)
        first = len(self._before)
        while self.generator.room is not None and len(ids) > self.generator.room and len(messages) > first + 2:
            del messages[first : first + 2]
            ids = self._ids(messages)
        self.generator.refuse_unfit(ids)
        forgotten = len(self.history) + 1 - len(messages)
        if forgotten:
            logger.info(
                "the conversation is longer than the model takes: its %d oldest messages are left out", forgotten
            )
        answer = self.generator.generate(ids, show)
        self.history = [*messages, _message("assistant", answer.text)]
        return answer

    def _ids(self, messages: list[dict[str, str]]) -> list[int]:
        tokenizer = self.generator.tokenizer
        try:
            encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # a template is a program that comes with the model
            raise NestQuantError(
                f"the chat template refuses the conversation ({first_line(error)})", NOT_GENERATED, "leave out --system"
            ) from error
        return list(encoded["input_ids"])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
