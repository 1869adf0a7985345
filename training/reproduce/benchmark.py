"""From nothing to the document: data, run, real scans, and what came out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from algorithm.errors import InputError
from algorithm.segmenter import LesionSegmenter
from training.files import write_text
from training.lobe_dice import cases_to_measure_on, compare_lobes
from training.phantom.chest import PhantomOptions
from training.phantom.generate import write_phantoms
from training.reproduce.document import results_document
from training.reproduce.presence import compare_presence, real_scans
from training.run import require_settings, run_all
from training.stages import Run

PICTURES = ("figure.png", "slices.png")


@dataclass(frozen=True)
class Benchmark:
    """What the data set consists of.

    Attributes:
        lobe_shapes: directory of real lobe label maps; each is used in one split only.
        train: training cases, the healthy ones among them.
        healthy: training cases without any lesion.
        validation: validation cases.
        test: test cases; their scores are true.
        score_noise: see `PhantomOptions`.
        coarseness: voxel size factor.
        seed: of the phantoms.
    """

    lobe_shapes: Path
    train: int = 150
    healthy: int = 15
    validation: int = 15
    test: int = 40
    score_noise: float = 0.3
    coarseness: float = 1.6
    seed: int = 1

    @property
    def cases(self) -> int:
        """Cases of all splits."""
        return self.train + self.validation + self.test

    def options(self, workers: int) -> PhantomOptions:
        """What makes the phantoms."""
        return PhantomOptions(
            lobe_shapes=self.lobe_shapes,
            coarseness=self.coarseness,
            validation=self.validation,
            test=self.test,
            healthy=self.healthy,
            score_noise=self.score_noise,
            workers=workers,
        )


def reproduce(
    benchmark: Benchmark,
    run: Run,
    config: str,
    document: Path,
    *,
    real: Path | None = None,
    lobe_data: Path | None = None,
) -> int:
    """Make the data, do every stage and the comparison, segment real scans, and write down what came out.

    Goes on where it was interrupted: finished cases, stages and rows are not done again.

    Args:
        benchmark: the data set, written to ``run.data``.
        run: where everything lies, with which settings.
        config: the settings as given on the command line.
        document: the Markdown file; its pictures go into a folder beside it that is named after it.
        real: directory of real scans, see `compare_presence`.
        lobe_data: data directory to learn lobes from, and to measure them on.

    Returns:
        0, or the exit code of the stage that failed.

    Raises:
        InputError: the data set cannot be made of these shapes, or real scans or the lobes' data cannot be used.
    """
    if real is not None:
        real_scans(real)  # refuses a folder without scans before any work
    require_settings(run.config, with_comparison=True, lobe_data=lobe_data)
    if lobe_data is not None:
        cases_to_measure_on(lobe_data, "test")
    if benchmark.train <= benchmark.healthy:
        raise InputError(f"got {benchmark.train} training cases, {benchmark.healthy} of them healthy: expected more")
    write_phantoms(
        cases=benchmark.cases, seed=benchmark.seed, out=run.data, options=benchmark.options(run.workers.count)
    )
    code = run_all(run, config, with_comparison=True, lobe_data=lobe_data)
    if code:
        return code
    segmenter = LesionSegmenter.from_directory(run.folder("export") / "model", device=run.device)
    lobes, presence = run.directory / "lobe-dice", run.directory / "real"
    if lobe_data is not None:
        compare_lobes(segmenter, lobe_data, lobes, split="test", with_lesions=False)
    if real is not None:
        compare_presence(segmenter, real, presence)
    pictures = document.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        shutil.copyfile(run.folder("ablate") / name, pictures / name)
    text = results_document(
        run,
        command=subprocess.list2cmdline(["python", "-m", "training", *sys.argv[1:]]),
        lobes=lobes / "summary.md" if lobe_data is not None else None,
        presence=presence / "presence.md" if real is not None else None,
        pictures=pictures.name,
    )
    write_text(document, text)
    return 0
