"""One case from the platform's input folder to its output folder, and how results appear all at once or not at all."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct, read_labels, write_labels
from algorithm.lobes import check_lobes
from algorithm.sockets import LESIONS, LOBES, SEVERITY, read_inputs

if TYPE_CHECKING:
    from algorithm.segmenter import Segmentation

INPUT_DIR = Path("/input")
OUTPUT_DIR = Path("/output")
MEMORY_GB = 5.5
"""For the activations of one tile: a network of the paper's width takes large lungs at once, the default any."""
STAGING_PREFIX = ".partial-"
LESIONS_FILE = f"{LESIONS.relative_path}/output.mha"
LOBES_FILE = f"{LOBES.relative_path}/output.mha"

log = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What `algorithm.segmenter.LesionSegmenter` does, without its import of torch."""

    def segment(
        self, ct: Volume, lobes: Volume | None = None, *, progress: Callable[[str, float], None] | None = None
    ) -> Segmentation:
        """Segment one scan, whose lobes are given or found."""
        ...


def run_case(segmenter: Segmenter, input_dir: Path = INPUT_DIR, output_dir: Path = OUTPUT_DIR) -> None:
    """Read one case, segment it, write its outputs; a failure leaves none, nor those of an earlier case.

    Args:
        segmenter: does the work.
        input_dir: holds inputs.json and the sockets' folders; only read.
        output_dir: gets the outputs of `algorithm.sockets`.

    Raises:
        InputError: the case cannot be processed, or the output folder cannot be written.
    """
    started = time.perf_counter()
    with staged_outputs(output_dir) as staging:
        for relative_path in (LESIONS_FILE, LOBES_FILE, SEVERITY.relative_path):
            (output_dir / relative_path).unlink(missing_ok=True)
        inputs = read_inputs(input_dir)
        log.info("case %s", inputs.name)
        ct, lobes = read_case(inputs.ct, inputs.lobes)
        segmentation = segmenter.segment(ct, lobes)
        _write_labels(segmentation.labels, staging / LESIONS_FILE)
        if lobes is None:  # a given one is an input of its interface and must not be an output too
            _write_labels(segmentation.lobes, staging / LOBES_FILE)
        (staging / SEVERITY.relative_path).write_text(segmentation.report.model_dump_json(indent=2), encoding="utf-8")
    log.info("case %s: done in %.1f s", inputs.name, time.perf_counter() - started)


def read_case(ct_path: Path, lobes_path: Path | None) -> tuple[Volume, Volume | None]:
    """Read and check a CT and, where there is one, its lobe mask.

    Raises:
        InputError: either cannot be used.
    """
    ct = read_ct(ct_path)
    return ct, None if lobes_path is None else check_lobes(read_labels(lobes_path), ct)


def require_apart(inputs: Iterable[Path | None], results: Iterable[Path]) -> None:
    """Check that no result will be written to an input's place.

    Raises:
        InputError: an input lies where a result belongs.
    """
    places = {path.resolve() for path in results}
    for path in inputs:
        if path is not None and path.resolve() in places:
            raise InputError(
                f"{path}: got an input in the place of a result, expected it elsewhere; move it, or choose another "
                "folder for the results"
            )


def _write_labels(labels: Volume, path: Path) -> None:
    path.parent.mkdir(parents=True)
    write_labels(labels, path)


@contextmanager
def staged_outputs(output_dir: Path, *, optional: Sequence[str] = ()) -> Iterator[Path]:
    """A folder whose files move to the same places in the output folder at the end, where nothing failed.

    Args:
        output_dir: made if need be.
        optional: files that not every run writes; those of an earlier run are taken away with its other results.

    Raises:
        InputError: the output folder cannot be made or written; this is found out before any work.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(dir=output_dir, prefix=STAGING_PREFIX)  # same disk: a move is a rename
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be written ({error.strerror}), expected a writable folder") from error
    with staging as name:
        yield Path(name)
        for left in set(optional) - set(os.listdir(name)):
            (output_dir / left).unlink(missing_ok=True)
        _publish(Path(name), output_dir)


def _publish(staging: Path, output_dir: Path) -> None:
    published: list[Path] = []
    try:
        for source in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = output_dir / source.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            published.append(source.replace(target))
    except OSError:
        for target in published:
            target.unlink()
        raise
