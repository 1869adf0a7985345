"""A submission for the evaluation image, laid out as grand-challenge.org does, with the standard library alone.

The reference of both its cases is the sample's expected lesions, and the submission what the algorithm has just made
of the sample, so that the right answer is known: an IoU of 1, up to rounding of another processor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

CASES = ("first", "second")
LESIONS = "images/covid-19-lesion-segmentation/lesions.mha"
LEAST_IOU = 0.99
SCORE_COLUMNS = {1: "lul", 2: "lll", 3: "rul", 4: "rll", 5: "rml"}


def lay_out(sample: Path, prediction: Path, input_directory: Path, ground_truth: Path) -> None:
    """Write predictions.json with a job and its output for each case, and the reference."""
    severity = json.loads((sample / "expected" / "severity.json").read_text())
    scores = {SCORE_COLUMNS[lobe["label"]]: lobe["score"] for lobe in severity["lobes"]}
    rows = [{"case": case, "lesions": "lesions.mha", "lobes": "lobes.mha", **scores} for case in CASES]
    lines: list[list[object]] = [list(rows[0]), *(list(row.values()) for row in rows)]
    ground_truth.mkdir(parents=True)
    table = "".join(",".join("" if cell is None else str(cell) for cell in line) + "\n" for line in lines)
    (ground_truth / "reference.csv").write_text(table)
    shutil.copyfile(sample / "lobes.mha", ground_truth / "lobes.mha")
    shutil.copyfile(sample / "expected" / "lesions.mha", ground_truth / "lesions.mha")

    jobs = []
    for case in CASES:
        lesions = input_directory / f"job-{case}" / "output" / LESIONS
        lesions.parent.mkdir(parents=True)
        shutil.copyfile(prediction, lesions)
        ct = {"socket": {"slug": "ct-image"}, "image": {"name": f"{case}.mha"}}
        jobs.append({"pk": f"job-{case}", "status": "Succeeded", "inputs": [ct], "outputs": []})
    (input_directory / "predictions.json").write_text(json.dumps(jobs))


def spoil(input_directory: Path) -> None:
    """Cut the last submitted mask short."""
    lesions = input_directory / f"job-{CASES[-1]}" / "output" / LESIONS
    lesions.write_bytes(lesions.read_bytes()[:-100])


def check_refusal(error: Path) -> None:
    """Exit with one line unless the error is one line that names the spoilt job."""
    lines = error.read_text().splitlines()
    if len(lines) != 1 or f"job-{CASES[-1]}" not in lines[0] or "ground_truth" in lines[0]:
        sys.exit(f"{error}: got {lines}, expected one line that names job-{CASES[-1]} and nothing of the reference")
    print(f"refused: {lines[0]}")


def check(metrics: Path) -> None:
    """Print the metrics; exit with one line unless they are those of a submission like the reference."""
    aggregates = json.loads(metrics.read_text())["aggregates"]
    iou, scans = aggregates["iou"]["overall"]["mean"], aggregates["scans"]["n"]
    print(json.dumps(aggregates["iou"], indent=2))
    print(f"kappa {aggregates['kappa']['value']}, scans {scans}")
    if iou is None or iou < LEAST_IOU or scans != len(CASES):
        sys.exit(f"{metrics}: IoU {iou} over {scans} scans, expected at least {LEAST_IOU} over {len(CASES)}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layout = commands.add_parser("lay-out")
    for argument in ("sample", "prediction", "input", "ground_truth"):
        layout.add_argument(argument, type=Path)
    commands.add_parser("check").add_argument("metrics", type=Path)
    commands.add_parser("spoil").add_argument("input", type=Path)
    commands.add_parser("check-refusal").add_argument("error", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "check":
        check(arguments.metrics)
    elif arguments.command == "spoil":
        spoil(arguments.input)
    elif arguments.command == "check-refusal":
        check_refusal(arguments.error)
    else:
        lay_out(arguments.sample, arguments.prediction, arguments.input, arguments.ground_truth)


if __name__ == "__main__":
    main()
