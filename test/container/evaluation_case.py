"""A submission for the evaluation image, laid out as grand-challenge.org does, with the standard library alone.

Reference and submission are both the sample's expected lesions, so that the right answer is known: an IoU of 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

JOB = "sample-job"
LESIONS = "images/covid-19-lesion-segmentation/lesions.mha"
SCORE_COLUMNS = {1: "lul", 2: "lll", 3: "rul", 4: "rll", 5: "rml"}


def lay_out(sample: Path, input_directory: Path, ground_truth: Path) -> None:
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
    shutil.copyfile(sample / "expected" / "lesions.mha", lesions)
    ct = {"socket": {"slug": "ct-image"}, "image": {"name": "ct.mha"}}
    job = {"pk": JOB, "status": "Succeeded", "inputs": [ct], "outputs": []}
    (input_directory / "predictions.json").write_text(json.dumps([job]))


def check(metrics: Path) -> None:
    """Exit with one line unless the metrics are those of a perfect submission."""
    aggregates = json.loads(metrics.read_text())["aggregates"]
    iou, scans = aggregates["iou"]["overall"]["mean"], aggregates["scans"]["n"]
    if (iou, scans) != (1.0, 1):
        sys.exit(f"{metrics}: IoU {iou} over {scans} scans, expected 1.0 over 1")
    print(f"IoU {iou:g} over {scans} scan")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layout = commands.add_parser("lay-out")
    for argument in ("sample", "input", "ground_truth"):
        layout.add_argument(argument, type=Path)
    commands.add_parser("check").add_argument("metrics", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "check":
        check(arguments.metrics)
    else:
        lay_out(arguments.sample, arguments.input, arguments.ground_truth)


if __name__ == "__main__":
    main()
