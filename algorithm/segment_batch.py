"""Many scans on this machine: one model, files read and written while it computes, a folder of results for each case.

A case's folder gets the files of `segment` and case.json, which says from which inputs they were made. Results from
the platform (`python -m batch`) have the same form, so that one folder can hold both.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from algorithm.batch_cases import BatchCase, sha256
from algorithm.errors import InputError, one_line
from algorithm.images import Volume, write_labels
from algorithm.job import STAGING_PREFIX, read_case, require_apart, staged_outputs
from algorithm.severity_table import SEVERITY_FILE, Severity, write_table

if TYPE_CHECKING:
    from algorithm.segmenter import LesionSegmenter, Predicted, Prepared, Segmentation

CASE_FILE = "case.json"
LESIONS_FILE = "lesions.mha"
LOBES_FILE = "lobes.mha"
PICTURE_FILE = "overview.png"
RESULT_FILES = (LESIONS_FILE, LOBES_FILE, SEVERITY_FILE, PICTURE_FILE, CASE_FILE)

log = logging.getLogger(__name__)

Draw = Callable[[Volume, "Segmentation", Path], None]


class CaseFile(BaseModel):
    """case.json, which `python -m batch` writes in the same way.

    Attributes:
        computed: ``here``, or the pk of a job on the platform.
        inputs: SHA-256 of each input, by slug.
        outputs: SHA-256 of each file beside case.json, by name.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    computed: str
    inputs: dict[str, str]
    outputs: dict[str, str]


def segment_cases(
    segmenter: LesionSegmenter,
    cases: Sequence[BatchCase],
    out: Path,
    *,
    draw: Draw,
    tell: Callable[[str], None] = print,
) -> dict[str, str]:
    """Segment every case that is not done, and write severity.csv of all cases in the folder.

    While the network computes one case the next is read and prepared, and the one before is finished and written. A
    case is done where its folder holds all results of the same inputs, model and precision. A case that fails is left
    out, with what earlier inputs gave, and the others go on. A mask that was changed by hand is not replaced: its case
    fails.

    Args:
        segmenter: a loaded model.
        cases: what to segment.
        out: gets a folder for each case.
        draw: writes the picture of a case.
        tell: told a line for each case, with the time left.

    Returns:
        What went wrong, by case; with those that other runs left in the folder without a usable report.

    Raises:
        InputError: the folder cannot be written, another process is working on it, or an input lies where a result
            belongs.
    """
    places = (out / case.name / name for case in cases for name in RESULT_FILES)
    require_apart((path for case in cases for path in (case.ct, case.lobes)), places)
    progress = _Progress(len(cases), tell)
    with _only_process(out), ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        loading = [reader.submit(_load, case, out, segmenter) for case in cases[:1]]
        writing: Future[None] | None = None
        for number, case in enumerate(cases):
            loading += [reader.submit(_load, later, out, segmenter) for later in cases[number + 1 : number + 2]]
            with progress.of(case.name):
                loaded = loading.pop(0).result()
                if loaded is None:
                    progress.end(case.name, "done before")
                    continue
                predicted = segmenter.predict(loaded.prepared)
                if writing is not None:
                    writing.result()  # no more than one case waits to be written
                writing = writer.submit(_write, case, out / case.name, loaded, predicted, segmenter, draw, progress)
        if writing is not None:
            writing.result()
        for case in cases:
            if case.name in progress.failures:
                _remove_of_other_inputs(case, out / case.name)
        return progress.failures | write_table(out, without=progress.failures)


@dataclass(frozen=True)
class _Loaded:
    """A case that is to be computed."""

    inputs: dict[str, str]
    ct: Volume
    lobes: Volume | None
    prepared: Prepared


def _load(case: BatchCase, out: Path, segmenter: LesionSegmenter) -> _Loaded | None:
    """Read and prepare a case; None where it is done."""
    inputs = case.sha256()
    if _is_done(out / case.name, inputs, segmenter, "given" if case.lobes else segmenter.lobes_by):
        return None
    _require_unchanged(out / case.name)
    ct, lobes = read_case(case.ct, case.lobes)
    return _Loaded(inputs, ct, lobes, segmenter.prepare(ct, lobes))


def _is_done(folder: Path, inputs: dict[str, str], segmenter: LesionSegmenter, lobes_source: str) -> bool:
    case_file = _read_case_file(folder)
    if case_file is None:
        return False
    try:
        severity = Severity.model_validate_json((folder / SEVERITY_FILE).read_bytes())
        whole = all(sha256(folder / name) == digest for name, digest in case_file.outputs.items())
    except (OSError, ValidationError):
        return False
    got = (case_file.inputs, severity.model, severity.lobes_source, severity.precision)
    is_same = got == (inputs, segmenter.model.description.identity, lobes_source, segmenter.precision)
    return whole and SEVERITY_FILE in case_file.outputs and is_same


def _read_case_file(folder: Path) -> CaseFile | None:
    """None where there is none, or a damaged one."""
    try:
        return CaseFile.model_validate_json((folder / CASE_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def _require_unchanged(folder: Path) -> None:
    """Check that no mask will be replaced which someone has corrected, or put there."""
    if any(folder.glob(f"{STAGING_PREFIX}*")):
        return  # killed while new results took the places of earlier ones
    case_file = _read_case_file(folder)
    for path in (folder / LESIONS_FILE, folder / LOBES_FILE):
        if path.is_file() and not (case_file and _is_as_written(path, case_file)):
            raise InputError(
                f"{path}: got a mask that was changed, or does not come from here, in the place of a result; move it "
                "elsewhere, from where lobes can be given, or delete it"
            )


def _is_as_written(path: Path, case_file: CaseFile) -> bool:
    return path.is_file() and sha256(path) == case_file.outputs.get(path.name)


def _remove_of_other_inputs(case: BatchCase, folder: Path) -> None:
    """Take away what an earlier input of a failed case gave, lest it pass for this one's; not what others put there."""
    case_file = _read_case_file(folder)
    try:
        if case_file is None or case_file.inputs == case.sha256():
            return
    except OSError:
        return  # an input that cannot be read now
    for path in (folder / name for name in RESULT_FILES):
        if path.name == CASE_FILE or _is_as_written(path, case_file):
            path.unlink()


def _write(
    case: BatchCase,
    folder: Path,
    loaded: _Loaded,
    predicted: Predicted,
    segmenter: LesionSegmenter,
    draw: Draw,
    progress: _Progress,
) -> None:
    with progress.of(case.name):
        segmentation = segmenter.finish(loaded.prepared, predicted)
        for left in folder.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(left)
        with staged_outputs(folder, optional=(LOBES_FILE,)) as staging:
            write_labels(segmentation.labels, staging / LESIONS_FILE)
            report = segmentation.report.model_dump_json(indent=2)
            (staging / SEVERITY_FILE).write_text(report, encoding="utf-8")
            if loaded.lobes is None:
                write_labels(segmentation.lobes, staging / LOBES_FILE)
            draw(loaded.ct, segmentation, staging / PICTURE_FILE)
            outputs = {path.name: sha256(path) for path in sorted(staging.iterdir())}
            case_file = CaseFile(computed="here", inputs=loaded.inputs, outputs=outputs)
            (staging / CASE_FILE).write_text(case_file.model_dump_json(indent=2) + "\n", encoding="utf-8")
        progress.end(case.name, "done", computed=True)


class _Progress:
    """Counts cases as they end, in whatever thread."""

    def __init__(self, count: int, tell: Callable[[str], None]) -> None:
        self.failures: dict[str, str] = {}
        self._count, self._ended, self._computed = count, 0, 0
        self._tell = tell
        self._started = time.monotonic()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Take an error of one case down and let the others go on."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, InputError | OSError):
                log.error("%s", name, exc_info=error)
            self.failures[name] = one_line(error)
            self.end(name, f"failed: {one_line(error)}")

    def end(self, name: str, how: str, *, computed: bool = False) -> None:
        """Tell that a case has ended, and how long the others will take if they take as long."""
        with self._lock:
            self._ended += 1
            self._computed += computed
            left = self._count - self._ended
            text = f"{self._ended}/{self._count} {name}: {how}"
            if left and self._computed:
                seconds = left * (time.monotonic() - self._started) / self._computed
                text += f"; about {timedelta(seconds=round(seconds))} left"
            self._tell(text)


@contextmanager
def _only_process(out: Path) -> Iterator[None]:
    """Keep other processes out; the operating system lets them in when this one ends, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".segment-batch.lock").open("w")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}), expected a writable folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another segment-batch is working on this folder; wait for it to end") from error
        yield
