"""The connection to the platform: the only place that knows gcapi."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batch.errors import InputError

TOKEN_VARIABLE = "GRAND_CHALLENGE_AUTHORIZATION"  # noqa: S105 (the variable's name, not a token)


@dataclass(frozen=True)
class Connection:
    """What is used of gcapi.

    Attributes:
        client: a `gcapi.Client`.
        socket_value: `gcapi.SocketValueSpec`.
        errors: what the client raises when the platform refuses or does not answer.
    """

    client: Any
    socket_value: Callable[..., Any]
    errors: tuple[type[Exception], ...]


def connect() -> Connection:
    """Connect with the token in the environment; asks the platform whether this gcapi is recent enough.

    Raises:
        InputError: gcapi or the token is missing, or the platform refuses or does not answer.
    """
    if not os.environ.get(TOKEN_VARIABLE):
        raise InputError(f"{TOKEN_VARIABLE}: not set; export a token from your profile on grand-challenge.org")
    try:
        import gcapi
        import httpx
        from gcapi.check_version import UnsupportedVersionError
        from gcapi.exceptions import GCAPIError
    except ImportError as error:
        raise InputError(f"{error.name}: not installed; pip install -r batch/requirements.txt") from error
    errors = (httpx.HTTPError, GCAPIError)
    try:
        client = gcapi.Client()
    except (*errors, UnsupportedVersionError, RuntimeError) as error:
        raise InputError(f"grand-challenge.org: no connection: {describe(error)}") from error
    return Connection(client, gcapi.SocketValueSpec, errors)


def describe(error: Exception) -> str:
    """An error on one line; of a refused request the platform's answer, never the request, which holds secrets."""
    response = getattr(error, "response", None)
    text = f"{type(error).__name__}: {error}" if response is None else f"HTTP {response.status_code}: {response.text}"
    return " ".join(text.split())[:300]
