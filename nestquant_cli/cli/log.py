"""The two forms of the log on standard error: plain lines, or one JSON object a line."""

import json
import logging
import textwrap
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from ..base import progress
from ..base.printable import escaped


class LogFormat(str, Enum):
    """Format of the log on standard error."""

    text = "text"
    json = "json"


class TextHandler(logging.Handler):
    """Writes records as plain lines, above a progress bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = escaped(record.getMessage(), keep="\t")
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            # indented, so that a line break in an error's message does not look like a line of the log
            text += "\n" + textwrap.indent(escaped(trace, keep="\n\t"), "  ")
        progress.console().print(prefix + text, markup=False, soft_wrap=True)


class JsonHandler(logging.Handler):
    """Writes records as one JSON object a line: `time`, `level`, `message` and the numbers in the record's `fields`."""

    def emit(self, record: logging.LogRecord) -> None:
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {"time": at, "level": record.levelname.lower(), "message": self.format(record), **fields}
        progress.console().print(json.dumps(line, default=str), markup=False, soft_wrap=True)


def handler(form: LogFormat) -> logging.Handler:
    """A handler for a format of the log. JSON has no progress bars; their numbers are in `fields` instead."""
    progress.draw_bars(form is LogFormat.text)
    return TextHandler() if form is LogFormat.text else JsonHandler()
