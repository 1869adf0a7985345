"""Many scans on this machine: one model, files read and written while it computes, a folder of results for each case.

A case's folder gets the files of `segment` and case.json, which says from which inputs they were made. Results from
the platform (`python -m batch`) have the same form, so that one folder can hold both.
"""

from __future__ import annotations

import csv
import fcntl
import io
import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
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
from algorithm.job import STAGING_PREFIX, read_case, staged_outputs
from algorithm.lobes import LOBES
from algorithm.report import ModelIdentity

if TYPE_CHECKING:
    from algorithm.segmenter import LesionSegmenter, Predicted, Prepared, Segmentation

TABLE_FILE = "severity.csv"
CASE_FILE = "case.json"
LESIONS_FILE = "lesions.mha"
LOBES_FILE = "lobes.mha"
SEVERITY_FILE = "severity.json"
PICTURE_FILE = "overview.png"
RESULT_FILES = (LESIONS_FILE, LOBES_FILE, SEVERITY_FILE, PICTURE_FILE, CASE_FILE)
COLUMNS = ("case", *(f"{lobe.key}_{what}" for lobe in LOBES for what in ("percent", "score")), "total_score")

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


class _Lobe(BaseModel):
    label: int
    percent: float | None
    score: int | None


class _Severity(BaseModel):
    """What of a severity.json is used here; a later version may hold more."""

    model: ModelIdentity | None = None
    precision: str = "fp32"
    lobes_source: str = "given"
    lobes: list[_Lobe]
    total_score: int | None


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
    out, with what earlier inputs gave, and the others go on.

    Args:
        segmenter: a loaded model.
        cases: what to segment.
        out: gets a folder for each case.
        draw: writes the picture of a case.
        tell: told a line for each case, with the time left.

    Returns:
        What went wrong, by case; with those that other runs left in the folder without a usable report.

    Raises:
        InputError: the folder cannot be written, or another process is working on it.
    """
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


def write_table(out: Path, *, without: Collection[str] = ()) -> dict[str, str]:
    """Write severity.csv of all cases in a folder, wherever they were computed.

    Args:
        out: has a folder with severity.json for each case.
        without: cases that are left out: what lies there is of an earlier input.

    Returns:
        What is wrong with those that are left out, by case.
    """
    problems: dict[str, str] = {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path in sorted(out.glob(f"[!.]*/{SEVERITY_FILE}")):
        case = path.parent.name
        if case in without:
            continue
        try:
            severity = _Severity.model_validate_json(path.read_bytes())
        except ValidationError:
            problems[case] = f"{path}: got no report of severity, expected what `segment` writes; delete it"
            continue
        if [lobe.label for lobe in severity.lobes] != [lobe.label for lobe in LOBES]:
            problems[case] = f"{path}: got other lobes than {', '.join(lobe.key for lobe in LOBES)}; delete it"
            continue
        cells: list[str | int | None] = []
        for lobe in severity.lobes:
            cells += ["" if lobe.percent is None else f"{lobe.percent:.3f}", lobe.score]
        writer.writerow([case, *cells, severity.total_score])
    partial = out / f".{TABLE_FILE}.partial"
    partial.write_text(text.getvalue(), encoding="utf-8", newline="")
    partial.replace(out / TABLE_FILE)
    return problems


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
    ct, lobes = read_case(case.ct, case.lobes)
    return _Loaded(inputs, ct, lobes, segmenter.prepare(ct, lobes))


def _is_done(folder: Path, inputs: dict[str, str], segmenter: LesionSegmenter, lobes_source: str) -> bool:
    try:
        case_file = CaseFile.model_validate_json((folder / CASE_FILE).read_bytes())
        severity = _Severity.model_validate_json((folder / SEVERITY_FILE).read_bytes())
        whole = all(sha256(folder / name) == digest for name, digest in case_file.outputs.items())
    except (OSError, ValidationError):
        return False
    got = (case_file.inputs, severity.model, severity.lobes_source, severity.precision)
    is_same = got == (inputs, segmenter.model.description.identity, lobes_source, segmenter.precision)
    return whole and SEVERITY_FILE in case_file.outputs and is_same


def _remove_of_other_inputs(case: BatchCase, folder: Path) -> None:
    """Take away what an earlier input of a failed case gave, lest it pass for this one's."""
    try:
        case_file = CaseFile.model_validate_json((folder / CASE_FILE).read_bytes())
        if case_file.inputs == case.sha256():
            return
    except ValidationError:
        pass  # nothing says which input it is of
    except OSError:
        return  # no results, or an input that cannot be read now
    for name in RESULT_FILES:
        (folder / name).unlink(missing_ok=True)


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
