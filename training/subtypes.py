"""Stage subtypes: the table of lesions of known subtype that the vote compares with.

python -m training subtypes --data DATA --run-dir RUN
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from algorithm.errors import InputError
from algorithm.model import SUBTYPE_TABLE
from algorithm.subtypes import COLUMNS, SUBTYPES, find_components
from training.cases import Case, of_split, read_cases, read_scan
from training.files import write_text
from training.parallel import over_scans
from training.stages import Run

SMALLEST_REFERENCE_ML = 0.05  # crumbs say nothing about a subtype


def subtypes(run: Run, folder: Path) -> dict[str, Any]:
    """Write subtypes.csv from the validation cases that have reference lesions of known subtype.

    Raises:
        InputError: there is no such case.
    """
    cases = [case for case in of_split(read_cases(run.data), "validation") if case.lesions is not None]
    if not cases:
        raise InputError(
            f"{run.data}: no validation case with reference lesions; a few scans (the paper took 6) with lesions "
            "labelled 1 ground-glass, 2 consolidation, 3 mixed must be marked validation in cases.csv"
        )
    table = pd.concat(over_scans("subtypes", reference_components, cases, run.workers))
    if table.empty:
        raise InputError(
            f"{run.data}: the reference lesions of the validation cases are empty, smaller than "
            f"{SMALLEST_REFERENCE_ML} ml or of unknown subtype; expected lesions labelled {SUBTYPES}"
        )
    write_text(folder / SUBTYPE_TABLE, table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    return {
        "cases": len(cases),
        "components": {name: int((table["subtype"] == label).sum()) for label, name in SUBTYPES.items()},
    }


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
