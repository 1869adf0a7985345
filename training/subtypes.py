"""Stage subtypes: the table of lesions of known subtype that the vote compares with.

python -m training subtypes --data DATA --run RUN
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from algorithm.errors import InputError
from algorithm.model import SUBTYPE_TABLE
from algorithm.subtypes import COLUMNS, SUBTYPES, find_components
from training.cases import Case, of_split, read_cases, read_scan
from training.stages import Run, console

SMALLEST_REFERENCE_ML = 0.05  # crumbs say nothing about a subtype


def subtypes(run: Run, folder: Path) -> dict[str, Any]:
    """Write subtypes.csv from the validation cases that have reference lesions."""
    cases = [case for case in of_split(read_cases(run.data), "validation") if case.lesions is not None]
    if not cases:
        raise InputError(
            f"{run.data}: no validation case with reference lesions; a few scans (the paper took 6) with lesions "
            "labelled 1 ground-glass, 2 consolidation, 3 mixed must be marked validation in cases.csv"
        )
    table = pd.concat([reference_components(case) for case in track(cases, "subtypes", console=console)])
    if table.empty:
        raise InputError(f"{run.data}: the reference lesions of the validation cases are all empty")
    table.to_csv(folder / SUBTYPE_TABLE, index=False, float_format="%.4f")
    return {
        "cases": len(cases),
        "components": {name: int((table["subtype"] == label).sum()) for label, name in SUBTYPES.items()},
    }


def reference_components(case: Case) -> pd.DataFrame:
    """Volume, mean and SD of HU and subtype of each connected reference lesion of a case.

    Where a lesion touches one of another subtype, each is a component of its own.
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
