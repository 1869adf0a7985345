"""docs/results.md: every number in it is read from the records of one run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from algorithm.report import or_dash
from training.ablate.rows import CAM_RAW, CAM_REFINED, CONTEXT, SUPERVISED, THRESHOLD
from training.ablate.tables import ROWS_A, markdown
from training.cases import of_split, read_cases
from training.files import read_json
from training.phantom.generate import OPTIONS
from training.run import STAGES
from training.stages import RECORD, Run

LEAST_SHARE_OF_SUPERVISED = 0.80
LEAST_GAIN_OVER_CAM = 1.48
LEAST_KAPPA = 0.75
SUBTYPES_BY_IOU = ("ground_glass", "mixed", "consolidation")  # as in the paper's Table II a, the hardest first


def results_document(run: Run, *, command: str, lobes: Path | None, presence: Path | None, pictures: str) -> str:
    """The document, in Markdown.

    Args:
        run: with a finished comparison and export.
        command: that made it.
        lobes: Markdown table of the lobes' Dice, where they were learnt.
        presence: Markdown table of real scans, where there are some.
        pictures: folder of the pictures, beside the document.
    """
    ablate = run.folder("ablate")
    record, vote = run.record("ablate"), about_vote(run.record("subtypes")["results"])
    parts = [
        f"# Results\n\nMade by\n\n    {command}\n\n{_environment(record['environment'])}",
        f"## Data\n\n{_data(run)}",
        f"## Rows of the method (the paper's Table II b)\n\n{_read(ablate / 'table_b.md')}",
        f"![IoU and kappa of each row]({pictures}/figure.png)",
        f"![The same slices in each row]({pictures}/slices.png)",
        f"### What was aimed at\n\n{goals(record['results'])}",
        f"## Subtypes (the paper's Table II a)\n\n{_read(ablate / 'table_a.md')}\n{vote}",
    ]
    if lobes is not None:
        parts.append(
            "## Lobes from the CT alone\n\nDice of the model's own lobes, on the CTs of unseen shapes.\n\n"
            + _read(lobes)
        )
    if presence is not None:
        parts.append(f"## Real scans\n\nThe exported model, in the given lobes.\n\n{_read(presence)}")
    parts.append(f"## Time and memory\n\n{_cost(run)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def goals(results: Mapping[str, Any]) -> str:
    """What the comparison should show, and whether it does, as a Markdown table.

    Args:
        results: of the stage ablate.
    """
    rows = {row["row"]: row for row in results["rows"]}
    subtypes = {row["row"]: row for row in results["subtypes"]}[ROWS_A[CONTEXT]]
    iou = {name: row["mean_iou"] for name, row in rows.items()}
    share, gain = _ratio(iou[CONTEXT], iou[SUPERVISED]), _ratio(iou[CONTEXT], iou[CAM_REFINED])
    lines = [
        _line(f"{CONTEXT} / {SUPERVISED}", share, LEAST_SHARE_OF_SUPERVISED),
        _line(f"{CONTEXT} / {CAM_REFINED}", gain, LEAST_GAIN_OVER_CAM),
        _line(f"kappa of {CONTEXT}", rows[CONTEXT]["kappa"], LEAST_KAPPA),
        *(_order((before, iou[before]), (after, iou[after])) for before, after in _steps(list(iou))),
        *(
            _order((f"{CONTEXT}: {low.replace('_', '-')}", subtypes[f"{low}_iou"]), (high, subtypes[f"{high}_iou"]))
            for low, high in pairwise(SUBTYPES_BY_IOU)
        ),
    ]
    return markdown(["mean IoU, or kappa", "measured", "at least", ""], lines)


def about_vote(results: Mapping[str, Any]) -> str:
    """How many lesions the vote looks at, and why.

    Args:
        results: of the stage subtypes.
    """
    tried = ", ".join(f"{iou:.3f} with {size}" for size, iou in results["left_out_iou"].items())
    looked_at = f"The vote looks at the {results['shortlist']} lesions of known subtype that are nearest in volume"
    if not tried:
        return f"{looked_at}."
    return (
        f"{looked_at} (the paper: 10). When the reference lesions of each validation scan are named by those of the "
        f"others, the mean IoU of the subtypes is {tried}."
    )


def _steps(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of rows of which the second should be better."""
    drams = names[names.index(CAM_REFINED) + 1 : names.index(CONTEXT) + 1]
    return [(THRESHOLD, SUPERVISED), (CAM_RAW, CAM_REFINED), *pairwise(drams)]


def _order(*named: tuple[str, float | None]) -> list[str]:
    """Of two values that should rise: their names, the values, and whether they do."""
    (before, low), (after, high) = named
    values = ", ".join(or_dash(value, ".3f") for value in (low, high))
    return [f"{before} < {after}", values, "", _word(low is not None and high is not None and low < high)]


def _line(name: str, value: float | None, least: float) -> list[str]:
    if value is None:
        return [name, "-", f"{least:.2f}", _word(False)]
    return [name, f"{value:.3f}", f"{least:.2f}", _word(value >= least)]


def _word(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _ratio(first: float, second: float) -> float | None:
    return first / second if second else None


def _environment(environment: Mapping[str, str]) -> str:
    named = {key: value for key, value in environment.items() if key not in ("version", "commit", "device", "cores")}
    versions = ", ".join(f"{library} {version}" for library, version in named.items())
    return (
        f"on {environment['cores']} cores, {environment['device']}, with version {environment['version']}, each stage "
        f"at the commit that the last table names ({versions})."
    )


def _data(run: Run) -> str:
    options = read_json(run.data / OPTIONS)
    cases = read_json(run.folder("export") / "model" / "model.json")["training"]["cases"]
    counts = ", ".join(f"{number} for {split}" for split, number in cases.items())
    healthy = sum(case.is_healthy for case in of_split(read_cases(run.data), "train"))
    return (
        f"Digital chest phantoms on real lobe shapes, none of which is in two splits: {counts}. Seed "
        f"{options['seed']}, voxel size factor {options['coarseness']:g}; {healthy} of the training cases "
        "have score 0 in every lobe. The networks see lobe scores only; a training or validation lobe near a border of "
        f"two scores has the wrong one of them with probability {options['score_noise']:g}, test scores are true. "
        f"Digest of the table: {run.record('prepare')['data_sha256'][:16]}."
    )


def _cost(run: Run) -> str:
    lines = []
    for stage in STAGES:
        if (run.directory / stage.name / RECORD).is_file():
            record = run.record(stage.name)
            memory = max(record["peak_memory_gb"], record["peak_memory_of_a_worker_gb"])
            commit, _, state = record["environment"]["commit"].partition("-")
            short = f"{commit[:10]}-{state}".removesuffix("-")
            lines.append([stage.name, f"{record['seconds'] / 60:.1f}", f"{memory:.1f}", short])
    note = (
        "\nOf all starts, where a stage was interrupted; memory is that of its largest process in the last one, whose "
        "commit is given (dirty: with changes that are not in it).\n"
    )
    return markdown(["stage", "minutes", "peak GB", "commit"], lines) + note


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
