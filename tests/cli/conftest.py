"""What tests of the command line share: the log is left as it was, because commands configure it for their process."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    logger = logging.getLogger("nestquant")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
