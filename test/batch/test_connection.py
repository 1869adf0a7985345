from __future__ import annotations

import sys

import pytest

from batch.connection import TOKEN_VARIABLE, connect, describe
from batch.errors import InputError


def test_needs_a_token(monkeypatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(InputError, match="GRAND_CHALLENGE_AUTHORIZATION: not set"):
        connect()


def test_needs_gcapi(monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    monkeypatch.setitem(sys.modules, "gcapi", None)
    with pytest.raises(InputError, match=r"gcapi: not installed; pip install -r batch/requirements\.txt") as caught:
        connect()
    assert "secret" not in str(caught.value)


def test_describes_the_answer_and_not_the_request(open_batch) -> None:
    refused = open_batch([]).connection.errors[0]
    assert describe(refused("x" * 500, 400)) == "HTTP 400: " + "x" * 290
    assert describe(OSError("disk\nfull")) == "OSError: disk full"
