"""The rows of the comparison, from what no learning achieves to the supervised upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from algorithm.errors import InputError
from training.settings import Ramp, RegressSettings, TrainingConfig

THRESHOLD = "threshold (no vessels)"
CAM_RAW = "CAM raw"
CAM_REFINED = "CAM + refinement"
CONTEXT = "+ context"
SUPERVISED = "supervised"
NETWORKS = ("cam", "regress", "segment", "segment-reference")
"""Stages that train what the rows without a training of their own measure."""

OFF = Ramp(weight=0.0)


@dataclass(frozen=True)
class Row:
    """One method of the comparison.

    Attributes:
        slug: its folder.
        name: in tables and figures; from ``dRAM raw`` on, what is added to the row before.
        needs: stages whose results it reads.
        settings: of the regression network that is trained for the row; None for rows that read what is there.
        is_weak: learnt from lobe scores alone; these rows are tested against the last of them, `CONTEXT`.
    """

    slug: str
    name: str
    needs: tuple[str, ...]
    settings: RegressSettings | None = None
    is_weak: bool = True


def table_rows(config: TrainingConfig) -> list[Row]:
    """All rows in order (dRAM paper, Table II b, with a threshold as row 0).

    Raises:
        InputError: a step of the method is off in the settings, so that its row would add nothing, or `CONTEXT` would
            build on a weaker network than the row before it.
    """
    return [
        Row("threshold", THRESHOLD, ("prepare", "vessels"), is_weak=False),
        Row("cam-raw", CAM_RAW, ("prepare", "cam")),
        Row("cam-refinement", CAM_REFINED, ("prepare", "cam", "vessels")),
        *_dram_rows(config.regress),
        Row("dram-vessel-suppression", "+ vessel suppression", ("prepare", "pseudo")),
        Row("dram-context", CONTEXT, ("prepare", "segment")),
        Row("supervised", SUPERVISED, ("prepare", "segment-reference"), is_weak=False),
    ]


def compared_rows(rows: Sequence[Row]) -> list[str]:
    """Names of the weak rows that are tested against `CONTEXT`; their number is Bonferroni's m."""
    return [row.name for row in rows if row.is_weak and row.name != CONTEXT]


def _dram_rows(main: RegressSettings) -> list[Row]:
    """Each switches one more step of the method on; with the last one, vessel suppression, it is the run's own."""
    if not main.equivariance.weight and not main.entropy.weight:
        raise InputError(
            "settings regress: equivariance.weight and entropy.weight are 0, so row '+ regulariser' would add nothing; "
            "expected one above 0"
        )
    if not main.refinement.weight:
        raise InputError(
            "settings regress: refinement.weight is 0, so row '+ refinement' would add nothing; expected one above 0"
        )
    off = [name for name in ("attention", "suppress_vessels") if not getattr(main, name)]
    if off:
        raise InputError(
            f"settings regress: got {' and '.join(f'{name} = false' for name in off)}, so {CONTEXT!r} would build on a "
            "weaker network than the row before it; expected true"
        )
    regularised = main.model_copy(update={"refinement": OFF, "attention": False, "suppress_vessels": False})
    refined = regularised.model_copy(update={"refinement": main.refinement})
    variants = {
        ("dram-raw", "dRAM raw"): regularised.model_copy(update={"equivariance": OFF, "entropy": OFF}),
        ("dram-regulariser", "+ regulariser"): regularised,
        ("dram-refinement", "+ refinement"): refined,
        ("dram-attention", "+ attention"): refined.model_copy(update={"attention": True}),
    }
    return [Row(slug, name, ("prepare",), settings) for (slug, name), settings in variants.items()]
