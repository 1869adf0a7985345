"""A submission for the evaluation image, laid out as grand-challenge.org does, with the standard library alone.

The reference is the sample's expected lesions and the submission what the algorithm has just made of the sample, so
that the right answer is known: an IoU of 1, up to rounding of another processor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

JOB = "sample-job"
LESIONS = "images/covid-19-lesion-segmentation/lesions.mha"
LEAST_IOU = 0.99
SCORE_COLUMNS = {1: "lul", 2: "lll", 3: "rul", 4: "rll", 5: "rml"}


def lay_out(sample: Path, prediction: Path, input_directory: Path, ground_truth: Path) -> None:
    """Write predictions.json with one job and its output, and the reference with one case."""
    severity = json.loads((sample / "expected" / "severity.json").read_text())
    scores = {SCORE_COLUMNS[lobe["label"]]: lobe["score"] for lobe in severity["lobes"]}
    row = {"case": "ct", "lesions": "lesions.mha", "lobes": "lobes.mha", **scores}
    cells = ("" if cell is None else str(cell) for cell in row.values())
    ground_truth.mkdir(parents=True)
    (ground_truth / "reference.csv").write_text(f"{','.join(row)}\n{','.join(cells)}\n")
    shutil.copyfile(sample / "lobes.mha", ground_truth / "lobes.mha")
    shutil.copyfile(sample / "expected" / "lesions.mha", ground_truth / "lesions.mha")

    lesions = input_directory / JOB / "output" / LESIONS
    lesions.parent.mkdir(parents=True)
    shutil.copyfile(prediction, lesions)
    ct = {"socket": {"slug": "ct-image"}, "image": {"name": "ct.mha"}}
    job = {"pk": JOB, "status": "Succeeded", "inputs": [ct], "outputs": []}
    (input_directory / "predictions.json").write_text(json.dumps([job]))


def check(metrics: Path) -> None:
    """Print the metrics; exit with one line unless they are those of a submission like the reference."""
    aggregates = json.loads(metrics.read_text())["aggregates"]
    iou, scans = aggregates["iou"]["overall"]["mean"], aggregates["scans"]["n"]
    print(json.dumps(aggregates["iou"], indent=2))
    print(f"kappa {aggregates['kappa']['value']}, scans {scans}")
    if iou < LEAST_IOU or scans != 1:
        sys.exit(f"{metrics}: IoU {iou} over {scans} scans, expected at least {LEAST_IOU} over 1")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layout = commands.add_parser("lay-out")
    for argument in ("sample", "prediction", "input", "ground_truth"):
        layout.add_argument(argument, type=Path)
    commands.add_parser("check").add_argument("metrics", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "check":
        check(arguments.metrics)
    else:
        lay_out(arguments.sample, arguments.prediction, arguments.input, arguments.ground_truth)


if __name__ == "__main__":
    main()
