"""All stages in order, and `run`, which does what is not done."""

from __future__ import annotations

import subprocess
import sys

from training.ablate import ablate
from training.config import Settings
from training.export import export
from training.prepare import prepare
from training.pseudo import pseudo
from training.regress import regress
from training.segment import segment, segment_reference
from training.stages import Run, Stage
from training.subtypes import subtypes

STAGES = (
    Stage("prepare", "Check every scan; cache its lobe chunks and whole.", (), lambda c: c.prepare, prepare),
    Stage("regress", "Train the dRAM on lobe scores.", ("prepare",), lambda c: c.regress, regress),
    Stage("pseudo", "Put dRAMs back into the scans: pseudo labels.", ("regress",), lambda c: c.pseudo, pseudo),
    Stage("segment", "Train the final network on pseudo labels.", ("pseudo",), lambda c: c.segment, segment),
    Stage(
        "segment-reference",
        "Train the final network on reference labels: the supervised upper bound.",
        ("prepare",),
        lambda c: c.segment,
        segment_reference,
    ),
    Stage("subtypes", "Make the reference table of lesion subtypes.", (), lambda c: Settings(), subtypes),
    Stage("ablate", "Compare on the test cases.", ("segment", "segment-reference"), lambda c: c.pseudo, ablate),
    Stage("export", "Write the model directory.", ("segment", "subtypes"), lambda c: c.export, export),
)

COMPARISON = ("segment-reference", "ablate")  # need reference lesions, and no use of the model needs them


def run_all(run: Run, config: str, *, with_comparison: bool) -> int:
    """Do every stage in order, each in a process of its own, so that its memory is its own.

    Args:
        run: the run.
        config: the settings as given on the command line.
        with_comparison: whether to train the supervised upper bound and compare the rows on the test cases.

    Returns:
        0, or the exit code of the stage that failed.
    """
    for stage in STAGES:
        if stage.name in COMPARISON and not with_comparison:
            continue
        options = ["--data", str(run.data), "--run", str(run.directory), "--config", config, "--device", run.device]
        code = subprocess.run([sys.executable, "-m", "training", stage.name, *options], check=False).returncode
        if code:
            return code
    return 0
