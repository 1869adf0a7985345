"""Stage subtypes: the table of lesions of known subtype that the vote compares with.

python -m training subtypes --data DATA --run-dir RUN
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.model import SUBTYPE_TABLE
from algorithm.subtypes import COLUMNS, SUBTYPES, ReferenceComponents, VoteRules, find_components, vote
from training.cases import Case, of_split, read_cases, read_scan
from training.files import write_text
from training.parallel import over_scans
from training.settings import SubtypeSettings
from training.stages import Run

SMALLEST_REFERENCE_ML = 0.05  # crumbs say nothing about a subtype
SHORTLISTS = tuple(10 * 2**k for k in range(10))  # that are tried; the first is the paper's


def subtypes(run: Run, folder: Path) -> dict[str, Any]:
    """Write subtypes.csv from the validation cases that have reference lesions of known subtype; choose the shortlist.

    Returns:
        The numbers of ``cases`` and of ``components`` by subtype, the ``shortlist`` of the vote, and ``left_out_iou``,
        what `left_out_iou` gives for each that was tried.

    Raises:
        InputError: there is no such case.
    """
    cases = [case for case in of_split(read_cases(run.data), "validation") if case.lesions is not None]
    if not cases:
        raise InputError(
            f"{run.data}: no validation case with reference lesions; a few scans (the paper took 6) with lesions "
            "labelled 1 ground-glass, 2 consolidation, 3 mixed must be marked validation in cases.csv"
        )
    found = over_scans("subtypes", reference_components, cases, run.workers)
    table = pd.concat([lesions.assign(case=case.name) for case, lesions in zip(cases, found, strict=True)])
    if table.empty:
        raise InputError(
            f"{run.data}: the reference lesions of the validation cases are empty, smaller than "
            f"{SMALLEST_REFERENCE_ML} ml or of unknown subtype; expected lesions labelled {SUBTYPES}"
        )
    text = table.to_csv(columns=list(COLUMNS), index=False, float_format="%.4f", lineterminator="\n")
    write_text(folder / SUBTYPE_TABLE, text)
    shortlist, tried = chosen_shortlist(table, run.config.subtypes)
    return {
        "cases": len(cases),
        "components": {name: int((table["subtype"] == label).sum()) for label, name in SUBTYPES.items()},
        "shortlist": shortlist,
        "left_out_iou": {str(size): iou for size, iou in tried.items()},
    }


def vote_rules(run: Run) -> VoteRules:
    """The rules of the vote, with the shortlist that the finished stage chose."""
    return run.config.subtypes.rules(run.record("subtypes")["results"]["shortlist"])


def chosen_shortlist(table: pd.DataFrame, settings: SubtypeSettings) -> tuple[int, dict[int, float]]:
    """How many lesions are looked at: as the settings say, or as names the lesions of each scan best by the others'.

    The larger the table, and the rarer a subtype in it, the more of it a few lesions nearest in volume leave out.

    Args:
        table: of lesions, with the columns volume_ml, mean_hu, sd_hu, subtype and case.
        settings: of the vote.

    Returns:
        The shortlist, and `left_out_iou` of each that was tried: none where the settings say it, or where all lesions
        are of one scan, whose shortlist is the paper's.
    """
    if settings.shortlist is not None:
        return settings.shortlist, {}
    if table["case"].nunique() == 1:
        return SHORTLISTS[0], {}
    sizes = [size for size in SHORTLISTS if size < len(table)] or SHORTLISTS[:1]
    tried = {size: left_out_iou(table, settings.rules(size)) for size in sizes}
    return max(tried, key=lambda size: tried[size]), tried


def left_out_iou(table: pd.DataFrame, rules: VoteRules) -> float:
    """IoU of the subtypes when each scan's lesions, outlined as in the reference, are named by those of the others.

    The mean over the scans in which a subtype is or is voted, then over the subtypes.

    Args:
        table: as of `chosen_shortlist`, of two scans at least.
        rules: of the vote.
    """
    ious = []
    for case, lesions in table.groupby("case"):
        own, others = _components(lesions), _components(table[table["case"] != case])
        voted = vote(own, others, rules)
        members = {subtype: (own.subtype == subtype, voted == subtype) for subtype in SUBTYPES}
        ious.append({subtype: _iou(*both, own.volume_ml) for subtype, both in members.items()})
    return float(pd.DataFrame(ious).mean().mean())


def _iou(reference: NDArray[np.bool_], voted: NDArray[np.bool_], volume_ml: NDArray[np.float64]) -> float:
    """By volume of the lesions; NaN where there are none."""
    either = volume_ml[reference | voted].sum()
    return float(volume_ml[reference & voted].sum() / either) if either else float("nan")


def _components(table: pd.DataFrame) -> ReferenceComponents:
    return ReferenceComponents(**{column: table[column].to_numpy() for column in COLUMNS})


def reference_components(case: Case) -> pd.DataFrame:
    """Volume, mean and SD of HU and subtype of each connected reference lesion of a case, inside the lobes.

    Where a lesion touches one of another subtype, each is a component of its own. Lesions of unknown subtype and those
    smaller than 0.05 ml are left out; without any other, the table is empty.

    Raises:
        InputError: the case has no reference lesions, or its images cannot be used.
    """
    scan = read_scan(case)
    if scan.lesions is None:
        raise InputError(f"case {case.name}: no reference lesions")
    tables = []
    for subtype in SUBTYPES:
        lesions = (scan.lesions.array == subtype) & (scan.lobes.array > 0)
        found = find_components(lesions, scan.ct.array, voxel_ml=scan.ct.geometry.voxel_ml)
        columns = (found.volume_ml, found.mean_hu, found.sd_hu, np.full(len(found), subtype))
        tables.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
    table = pd.concat(tables)
    return table[table["volume_ml"] >= SMALLEST_REFERENCE_ML]
