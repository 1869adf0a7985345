"""What can go wrong: with what the user gave, with the platform, and with the token for it."""

from __future__ import annotations

import re


class InputError(ValueError):
    """Input or an account that cannot be used.

    The message is one line for the user: what is wrong, what was got, what was expected, and the cure.
    """


class TokenRefusedError(Exception):
    """The platform does not take the token: nothing can be done, with any case."""


class PlatformError(Exception):
    """The platform refused, or did not answer; the message is its answer, never the request, which holds secrets.

    Attributes:
        status_code: of the answer; None where there was none.
    """

    def __init__(self, message: str, status_code: int | None = None) -> None:
        """Keep the answer's status code beside the message."""
        super().__init__(message)
        self.status_code = status_code

    @property
    def is_refusal(self) -> bool:
        """Whether the platform has understood and will not do it, however often it is asked."""
        return self.status_code is not None and 400 <= self.status_code < 500 and self.status_code not in (408, 429)


def without_queries(text: str) -> str:
    """A text whose web addresses have lost their queries, which hold signatures."""
    return re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", text)
