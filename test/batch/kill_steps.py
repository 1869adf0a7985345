"""Kills a run at each of its steps in turn and then runs it to its end; prints how many steps there are.

python test/batch/kill_steps.py URL SLUG SCANS LOBES FOLDER

A step is a request that is about to be sent or has just been answered, or a file or folder that is about to get its
name or has just got it. The run that is killed at step 7 uses the token kill-7 and the folder FOLDER/7.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batch.cases import find_cases
from batch.connection import TOKEN_VARIABLE, Connection
from batch.jobs import Batch
from batch.manifest import Manifest, only_process

MOST_STEPS = 300


class _Steps:
    """Counts steps; the process dies at the one that is asked for."""

    def __init__(self, deadly: int | None) -> None:
        self.left = deadly

    def take(self, *_: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.take()
            result = function(*arguments)
            self.take()
            return result

        return counted


def _run(url: str, slug: str, scans: Path, lobes: Path, out: Path, deadly: int | None) -> None:
    steps = _Steps(deadly)
    Path.rename, Path.replace = steps.around(Path.rename), steps.around(Path.replace)
    with Connection(url) as connection, only_process(out):
        connection._client.event_hooks = {"request": [steps.take], "response": [steps.take]}
        manifest = Manifest.load_or_new(out, platform=url, algorithm=slug)
        wanted = manifest.plan(find_cases(scans, lobes), out)
        Batch(connection, manifest, out, wanted=wanted, sleep=lambda seconds: None).run()


def _in_a_process(*arguments: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            _run(*arguments)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(url: str, slug: str, scans: str, lobes: str, folder: str) -> None:
    for deadly in range(1, MOST_STEPS):
        os.environ[TOKEN_VARIABLE] = f"kill-{deadly}"
        arguments = (url, slug, Path(scans), Path(lobes), Path(folder, str(deadly)))
        fate = _in_a_process(*arguments, deadly)
        if fate == 0:
            print(deadly - 1)
            return
        if not (os.WIFSIGNALED(fate) and os.WTERMSIG(fate) == signal.SIGKILL):
            sys.exit(f"step {deadly}: failed of itself")
        if _in_a_process(*arguments, None) != 0:
            sys.exit(f"step {deadly}: the second run failed")
    sys.exit(f"no end after {MOST_STEPS} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
