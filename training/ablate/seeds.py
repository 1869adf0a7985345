"""The comparison repeated with other seeds: how far its rows and their order depend on chance.

python -m training seeds --run-dir RUN1 --run-dir RUN2 --run-dir RUN3 --out DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from algorithm.errors import InputError
from training.ablate.rows import CAM_RAW, CAM_REFINED, CONTEXT, NETWORKS, SUPERVISED, THRESHOLD
from training.ablate.tables import markdown, read_per_scan
from training.files import read_json, write_text
from training.parallel import console
from training.stages import RECORD, commits_behind

FEWEST_RUNS = 3


def compare_seeds(runs: Sequence[Path], out: Path) -> pd.DataFrame:
    """Mean IoU of each row under each seed, and in how many seeds each step of the method raises it.

    Writes seeds.csv and seeds.md.

    Args:
        runs: run directories with a finished stage ablate, alike but for the seed.
        out: where the tables go.

    Returns:
        A line per row: ``seed <n>`` for each run (mean IoU over the scans), ``mean``, ``sd`` (of one run), and
        ``raised_in``, the number of runs in which the row is better than the row before it; rows that do not build on
        the row before have none.

    Raises:
        InputError: fewer than three runs, one without a finished comparison, or runs that differ in more than the seed.
    """
    if len(runs) < FEWEST_RUNS:
        raise InputError(f"got {len(runs)} run directories, expected at least {FEWEST_RUNS} that differ in their seed")
    means = pd.DataFrame({f"seed {seed}": _mean_ious(run) for seed, run in _by_seed(runs).items()})
    table = means.assign(mean=means.mean(axis=1), sd=means.std(axis=1, ddof=1))
    steps = {row: int((means.loc[row] > means.loc[before]).sum()) for before, row in pairwise(means.index)}
    unrelated = (THRESHOLD, CAM_RAW, "dRAM raw", SUPERVISED)
    table["raised_in"] = pd.Series({row: n for row, n in steps.items() if row not in unrelated}, dtype="Int64")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "seeds.csv", table.to_csv(index_label="row", float_format="%.4f"))
    text = _markdown(table, len(runs)) + _note_on_commits(runs)
    write_text(out / "seeds.md", text)
    console.print(text, soft_wrap=True)
    return table


def _by_seed(runs: Sequence[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    first: dict[str, object] | None = None
    for run in runs:
        if not (run / "ablate" / RECORD).is_file():
            raise InputError(f"{run}: stage ablate is not done; run `python -m training ablate` on it first")
        record = read_json(run / "ablate" / RECORD)
        seed = int(record["seed"])
        alike = {
            "settings": {key: value for key, value in record["settings"].items() if key != "seed"},
            "data": record["data_sha256"],
            "images": read_json(run / "prepare" / RECORD)["results"]["images_sha256"],
            "processes": [read_json(run / stage / RECORD)["processes"] for stage in NETWORKS],
        }
        if seed in found:
            raise InputError(f"{run}: has seed {seed}, as has {found[seed]}; expected another seed in each run")
        if first is not None and alike != first:
            raise InputError(
                f"{run}: differs from {runs[0]} in more than the seed; expected the same data, settings and number of "
                "processes"
            )
        found[seed], first = run, alike
    return dict(sorted(found.items()))


def _mean_ious(run: Path) -> pd.Series[float]:
    return read_per_scan(run / "ablate" / "per_scan.csv").groupby("row", sort=False)["iou"].mean()


def _note_on_commits(runs: Sequence[Path]) -> str:
    """What the reader must know where the runs were not all made by the same code."""
    commits = sorted({commit for run in runs for commit in commits_behind(run, "ablate").values()})
    if len(commits) == 1:
        return ""
    return (
        f"\nThe stages were done at {len(commits)} commits, whose differences count as chance: {', '.join(commits)}.\n"
    )


def _markdown(table: pd.DataFrame, runs: int) -> str:
    header, lines = ["row", *map(str, table.columns[:-1]), f"raised in, of {runs}"], []
    for row, values in table.iterrows():
        raised = values["raised_in"]
        numbers = [f"{float(values[name]):.3f}" for name in table.columns[:-1]]
        lines.append([str(row), *numbers, "-" if pd.isna(raised) else str(int(raised))])
    note = (
        f"\nMean IoU over the test scans, one run a seed; SD between runs. {CAM_REFINED!r} and the rows from "
        f"'+ regulariser' to {CONTEXT!r} are compared with the row before them.\n"
    )
    return markdown(header, lines) + note
