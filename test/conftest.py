from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_log_to_a_stream_that_is_gone() -> Iterator[None]:
    """A command line that a test runs logs to the standard output of that test alone."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
