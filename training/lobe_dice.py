"""How good the lobes are that a model finds by itself, and what they change about the scores.

python -m training lobe-dice --data DATA --model MODEL --out DIR
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobe_checks import NoLungsError
from algorithm.lobe_job import draw_lobes
from algorithm.lobes import LOBES
from algorithm.segmenter import LesionSegmenter
from evaluation.metrics import dice
from training.cases import Case, Split, of_split, read_scan, read_table
from training.files import write_text
from training.parallel import console

LUNGS = "lungs"


def compare_lobes(
    segmenter: LesionSegmenter, data: Path, out: Path, *, split: Split, with_lesions: bool
) -> pd.DataFrame:
    """Dice of the lobes that a model finds against those of a data directory, on each CT's own grid.

    Writes lobes.csv with a line a case, summary.md with means, and a picture of each case's found lobes.

    Args:
        segmenter: a loaded model with a lobe network.
        data: directory with cases.csv; lobes are enough, scores need not be there.
        out: where to.
        split: which cases.
        with_lesions: whether to segment lesions as well, once in the found lobes and once in the given ones.

    Returns:
        What lobes.csv holds: Dice of ``lungs`` and of each lobe by its key, NaN where the case has no such lobe, 0
        where the model refuses the scan; ``warnings``, and in ``refused`` why it is; and, with lesions, the percentages
        <key>_percent_given and <key>_percent_found.

    Raises:
        InputError: no case is in the split, the model finds no lobes, or a scan cannot be used.
    """
    cases = cases_to_measure_on(data, split)
    out.mkdir(parents=True, exist_ok=True)
    rows = [_measured(segmenter, case, out, with_lesions) for case in track(cases, "lobes", console=console)]
    table = pd.DataFrame(rows)
    write_text(out / "lobes.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    summary = _summary(table)
    write_text(out / "summary.md", summary)
    console.print(summary, soft_wrap=True, markup=False)
    return table


def cases_to_measure_on(data: Path, split: Split) -> list[Case]:
    """The cases of a split.

    Raises:
        InputError: there is none, or the table cannot be used.
    """
    cases = of_split(read_table(data), split)
    if not cases:
        raise InputError(f"{data}: got no case with split {split}, expected some to measure on")
    return cases


def _measured(segmenter: LesionSegmenter, case: Case, out: Path, with_lesions: bool) -> dict[str, object]:
    try:
        scan = read_scan(case)
    except InputError as error:
        raise InputError(f"case {case.name}: {error}") from error
    try:
        found = segmenter.find_lobes(scan.ct)
    except NoLungsError as error:
        nothing = scan.lobes.with_array(np.zeros_like(scan.lobes.array))
        return {"case": case.name, **lobe_dices(scan.lobes, nothing), "warnings": "", "refused": str(error)}
    draw_lobes(scan.ct, found.labels, out / f"{case.name}.png")
    row: dict[str, object] = {"case": case.name, **lobe_dices(scan.lobes, found.labels)}
    if with_lesions:
        for name, lobes in (("given", scan.lobes), ("found", found.labels)):
            report = segmenter.segment(scan.ct, lobes).report
            row |= {
                f"{lobe.key}_percent_{name}": entry.percent for lobe, entry in zip(LOBES, report.lobes, strict=True)
            }
    return row | {"warnings": "; ".join(found.warnings), "refused": ""}


def lobe_dices(reference: Volume, found: Volume) -> dict[str, float]:
    """Dice of both lungs together, and of each lobe by its key; NaN for a lobe that the reference lacks."""
    dices = {LUNGS: dice(reference.array > 0, found.array > 0)}
    for lobe in LOBES:
        own = reference.array == lobe.label
        dices[lobe.key] = dice(own, found.array == lobe.label) if own.any() else float("nan")
    return dices


def _summary(table: pd.DataFrame) -> str:
    """Mean and least Dice, and the mean absolute change of the percentages, as Markdown."""
    lines = ["| | cases | mean Dice | least Dice | mean change of lesion percentage |", "|---|---|---|---|---|"]
    for name in (LUNGS, *(lobe.key for lobe in LOBES)):
        dices, change = table[name].dropna(), "-"
        if f"{name}_percent_found" in table:
            change = f"{(table[f'{name}_percent_found'] - table[f'{name}_percent_given']).abs().mean():.2f}"
        lines.append(f"| {name} | {len(dices)} | {dices.mean():.4f} | {dices.min():.4f} | {change} |")
    refused = table[table["refused"] != ""]
    notes = [f"\nRefused, and counted as Dice 0: {row['case']}: {row['refused']}" for _, row in refused.iterrows()]
    return "\n".join(lines + notes) + "\n"
