"""One text from each record of a data set: the string of a field, or a conversation through the chat template."""

import datetime
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError, first_line
from .text_files import NOT_READ, Records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS = ("text", "messages")  # fields that are looked for where none is named
_DAY = datetime.datetime(2025, 1, 1)  # date that templates write, so that a text is the same on every day
_CODES = "YmdBbAayHMSjpI"  # codes of strftime that are replaced


class Fields:
    """Turns records into texts. The first record decides which field is read.

    Args:
        field: name of the field; None takes the first of FIELDS that the first record has.
        tokenizer: tokenizer whose chat template turns a list of messages into text; None for none.

    Attributes:
        template: hash of the chat template, once one was used; else None.
    """

    def __init__(self, field: str | None, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        self.field, self._tokenizer = field, tokenizer
        self.template: str | None = None

    def texts(self, records: Records) -> Iterator[str]:
        """Yields the text of each record.

        Raises:
            NestQuantError: a record has no such field, or something else in it than text or messages.
        """
        for place, record in records:
            yield record if isinstance(record, str) and self.field is None else self._text(place, record)

    def _text(self, place: str, record: Any) -> str:
        if self.field is None:
            has = record if isinstance(record, dict) else {}
            self.field = next((name for name in FIELDS if name in has), FIELDS[0])
        value = record.get(self.field) if isinstance(record, dict) else None
        if isinstance(value, str):
            return value
        if isinstance(value, list) and _is_conversation(value):
            return self._conversation(place, value)
        fields = ", ".join(map(str, record)) if isinstance(record, dict) and record else "none"
        raise NestQuantError(
            f"{place} has no string in the field '{self.field}', nor messages with role and content",
            NOT_READ,
            f'use lines such as {{"text": "..."}}, or name a field with --text-field (this one has {fields})',
        )

    def _conversation(self, place: str, messages: list[dict[str, Any]]) -> str:
        template = getattr(self._tokenizer, "chat_template", None)
        if self._tokenizer is None or not template:
            raise NestQuantError(
                f"{place} is a conversation and the tokenizer has no chat template",
                NOT_READ,
                "give text, or a model whose tokenizer has a template",
            )
        try:
            chosen = self._tokenizer.get_chat_template()
            text: Any = self._tokenizer.apply_chat_template(messages, chat_template=_on_a_day(chosen), tokenize=False)
        except Exception as error:  # a template is a program that comes with the model
            raise NestQuantError(
                f"the chat template refuses the messages of {place} ({first_line(error)})", NOT_READ, "correct them"
            ) from error
        self.template = hashlib.sha256(chosen.encode()).hexdigest()
        return str(text)


def _on_a_day(template: str) -> str:
    """The template with a macro in front that makes its `strftime_now` return `_DAY`."""
    name = "strftime_now"
    if name not in template:
        return template
    steps = "".join(f" | replace('%{code}', '{_DAY.strftime('%' + code)}')" for code in _CODES)
    return f"{{% macro {name}(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}{template}"


def _is_conversation(value: list[Any]) -> bool:
    return bool(value) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message for message in value
    )
