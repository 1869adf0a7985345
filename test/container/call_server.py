"""Wait until the server of the invoke method is healthy, call it once, and print the HTTP status and the answer.

It runs beside the server (in its container, which has no network), with the standard library alone.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException

HEALTHY_WITHIN_S = 300  # the platform's own limits
HEALTH_ANSWER_S = 10
INVOKE_ANSWER_S = 3600


def wait_until_healthy(address: str) -> None:
    """Poll GET /health until it answers 200; TimeoutError when it does not in time."""
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=HEALTH_ANSWER_S) as answer:
                if answer.status == 200:
                    return
        except (OSError, HTTPException):  # not listening yet, or not healthy yet
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{address}/health did not answer 200 within {HEALTHY_WITHIN_S} s")


def invoke(address: str) -> tuple[int, str]:
    """POST /invoke without a body, as the platform does; the status and the answer's text."""
    request = urllib.request.Request(f"{address}/invoke", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=INVOKE_ANSWER_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


if __name__ == "__main__":
    server = f"http://127.0.0.1:{sys.argv[1]}"
    wait_until_healthy(server)
    if sys.argv[2:] != ["--health-only"]:
        print(*invoke(server))
