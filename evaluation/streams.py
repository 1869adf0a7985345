"""What a process writes where: stdout has the log, stderr is left to the one line of a failure."""

from __future__ import annotations

import logging
import os
import sys

import SimpleITK as sitk

_STDOUT, _STDERR = 1, 2


def log_to_stdout() -> None:
    """Send log and Python's warnings to stdout, and silence SimpleITK's warnings, which name files."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
    logging.captureWarnings(capture=True)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)


def prepare_worker() -> None:
    """Make a worker process silent on stderr, also where a library written in C prints there, and single-threaded."""
    os.dup2(_STDOUT, _STDERR)
    log_to_stdout()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
