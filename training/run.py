"""All stages in order, and `run`, which does what is not done."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from algorithm.model import LOBE_WEIGHTS, sha256
from training.ablate import ablate
from training.ablate.rows import table_rows
from training.cam import cam
from training.complete import require_complete
from training.crf import require_engine
from training.export import export, lobes_of_model
from training.fissures import first_network as first_fissure_network
from training.fissures import fissures
from training.lobes import cases_to_learn_from, first_network, lobes
from training.prepare import prepare
from training.pseudo import pseudo
from training.regress import regress
from training.segment import segment, segment_reference
from training.settings import (
    CamSettings,
    ExportSettings,
    FissureSettings,
    LobeSettings,
    PrepareSettings,
    PseudoSettings,
    RegressSettings,
    SegmentSettings,
    Settings,
    TrainingConfig,
    VesselSettings,
)
from training.stages import Run, Stage
from training.subtypes import subtypes
from training.vessels import vessels


class CamInputs(Settings):
    """What the baseline's maps depend on."""

    cam: CamSettings
    scales: tuple[float, ...]  # of the maps, as of the dRAM's


def _cam_inputs(config: TrainingConfig) -> CamInputs:
    return CamInputs(cam=config.cam, scales=config.pseudo.scales)


class ComparisonInputs(Settings):
    """What the rows of the comparison depend on: neither lobes nor what is said of the model."""

    seed: int
    prepare: PrepareSettings
    vessels: VesselSettings
    regress: RegressSettings
    cam: CamSettings
    pseudo: PseudoSettings
    segment: SegmentSettings


def _comparison_inputs(config: TrainingConfig) -> ComparisonInputs:
    return ComparisonInputs(**{name: getattr(config, name) for name in ComparisonInputs.model_fields})


class ExportInputs(Settings):
    """What the model directory depends on beside earlier stages."""

    export: ExportSettings
    lobe_weights: str | None  # checksum of those to take over


def _checksum(model: Path | None) -> str | None:
    """Of a model's lobe weights, where there are some."""
    weights = model / LOBE_WEIGHTS if model else None
    return sha256(weights.read_bytes()) if weights and weights.is_file() else None


def _export_inputs(config: TrainingConfig) -> ExportInputs:
    checksum = _checksum(config.export.lobes_from)
    return ExportInputs(export=config.export, lobe_weights=checksum)


class LobeInputs(Settings):
    """What the lobe network depends on beside its data."""

    lobes: LobeSettings
    first_weights: str | None  # checksum of those that training begins with


def _lobe_inputs(config: TrainingConfig) -> LobeInputs:
    return LobeInputs(lobes=config.lobes, first_weights=_checksum(config.lobes.start_from))


class FissureInputs(Settings):
    """What the network that sees fissures depends on beside its data."""

    fissures: FissureSettings
    first_weights: str | None  # checksum of those that training begins with


def _fissure_inputs(config: TrainingConfig) -> FissureInputs:
    return FissureInputs(fissures=config.fissures, first_weights=_checksum(config.fissures.start_from))


PREPARE = Stage("prepare", "Check every scan; cache its lobe chunks and whole.", (), lambda c: c.prepare, prepare)
SUBTYPES = Stage("subtypes", "Make the reference table of lesion subtypes.", (PREPARE,), lambda c: c.subtypes, subtypes)
VESSELS = Stage(
    "vessels",
    "Learn vessels from healthy scans; find them in all.",
    (PREPARE,),
    lambda c: c.vessels,
    vessels,
    together=True,
)
REGRESS = Stage("regress", "Train the dRAM on lobe scores.", (VESSELS,), lambda c: c.regress, regress, together=True)
CAM = Stage(
    "cam",
    "Train the class activation map baseline on lobe scores.",
    (VESSELS,),
    _cam_inputs,
    cam,
    together=True,
)
PSEUDO = Stage(
    "pseudo",
    "Put dRAMs and vessels into the scans: pseudo labels.",
    (REGRESS, VESSELS),
    lambda c: c.pseudo,
    pseudo,
)
SEGMENT = Stage(
    "segment",
    "Train the final network on pseudo labels.",
    (PSEUDO,),
    lambda c: c.segment,
    segment,
    together=True,
)
SEGMENT_REFERENCE = Stage(
    "segment-reference",
    "Train the final network on reference labels: the supervised upper bound.",
    (PREPARE,),
    lambda c: c.segment,
    segment_reference,
    together=True,
)
LOBES = Stage(
    "lobes",
    "Train the network that finds the lobes of scans that come without; on any data with CT and lobes.",
    (),
    _lobe_inputs,
    lobes,
    together=True,
)
FISSURES = Stage(
    "fissures",
    "Train the network that sees fissures, along which the borders of these lobes are drawn again.",
    (LOBES,),
    _fissure_inputs,
    fissures,
    together=True,
)
ABLATE = Stage(
    "ablate",
    "Train what the main run lacks, and compare every row of the paper's tables on the test cases.",
    (CAM, SEGMENT, SEGMENT_REFERENCE, SUBTYPES),
    _comparison_inputs,
    ablate,
)
EXPORT = Stage(
    "export",
    "Write the model directory.",
    (SEGMENT, SUBTYPES),
    _export_inputs,
    export,
    uses=("ablate", "lobes", "fissures"),
)
STAGES = (
    *(PREPARE, SUBTYPES, VESSELS, REGRESS, CAM, PSEUDO, SEGMENT, SEGMENT_REFERENCE, ABLATE),
    *(LOBES, FISSURES, EXPORT),
)

COMPARISON = (CAM, SEGMENT_REFERENCE, ABLATE)  # of no use to the model itself
OF_LOBES = (LOBES, FISSURES)  # which may learn from data of their own
_SIGNAL_AT_DEATH_OF_PARENT = 1  # Linux's PR_SET_PDEATHSIG


def run_all(run: Run, config: str, *, with_comparison: bool, lobe_data: Path | None = None) -> int:
    """Do every stage in order, each in a process of its own, so that its memory is its own.

    Args:
        run: the run.
        config: the settings as given on the command line.
        with_comparison: whether to train the baseline, the ablations and the supervised upper bound, and compare all.
        lobe_data: data directory to learn lobes from, so that the model takes scans without lobes; None leaves it out.

    Returns:
        0, or the exit code of the stage that failed.

    Raises:
        InputError: before any work, what the stages would lack: all of the data's lacks together, or what
            `require_settings` refuses.
    """
    require_complete(run.data, with_comparison=with_comparison)
    require_settings(run.config, with_comparison=with_comparison, lobe_data=lobe_data)
    for stage in STAGES:
        if (stage in COMPARISON and not with_comparison) or (stage in OF_LOBES and lobe_data is None):
            continue
        data = lobe_data if stage in OF_LOBES else run.data
        options = ["--data", str(data), "--run-dir", str(run.directory), "--config", config, "--device", run.device]
        options += ["--workers", str(run.workers.count)] + (["--dask", run.workers.dask] if run.workers.dask else [])
        code = in_own_process([sys.executable, "-m", "training", stage.name, *options])
        if code:
            return code
    return 0


def require_settings(config: TrainingConfig, *, with_comparison: bool, lobe_data: Path | None) -> None:
    """Check, before any work, what late stages take beside the run's own data.

    Raises:
        InputError: the model whose lobe network is to be taken over, or to begin with, cannot be used, the engine of
            the dense CRF is not installed, the settings leave nothing to compare, or there is nothing to learn lobes
            from.
    """
    lobes_of_model(config.export.lobes_from)
    require_engine(config.regress.crf)
    if with_comparison:
        table_rows(config)
    if lobe_data is not None:
        cases_to_learn_from(lobe_data)
        first_network(config.lobes)
        first_fissure_network(config.fissures, config.lobes)


def in_own_process(command: Sequence[str]) -> int:
    """Run a command that, on Linux, is killed with this process, lest it keep the stage from who starts it again.

    Returns:
        Its exit code.
    """
    with subprocess.Popen(command, preexec_fn=_die_with_parent if sys.platform == "linux" else None) as process:
        return process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SIGNAL_AT_DEATH_OF_PARENT, signal.SIGKILL)
