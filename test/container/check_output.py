"""Check the outputs of one case against the expected ones; runs where the algorithm runs (its image or environment)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

# Files that a run leaves behind, and nothing else: (lesions, severity, others).
LAYOUTS = {
    "platform": ("images/covid-19-lesion-segmentation/output.mha", "covid-19-severity.json", ()),
    "segment": ("lesions.mha", "severity.json", ("overview.png",)),
}
LABELS = {0, 1, 2, 3}
MIN_DICE = 0.98
MAX_PERCENT_DIFFERENCE = 0.5  # percentage points of a lobe
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class CheckError(Exception):
    """An output is not as it must be; the message says which and how."""


def expect(condition: bool, message: str) -> None:
    """Raise CheckError with the message unless the condition holds."""
    if not condition:
        raise CheckError(message)


def check_files(output: Path, layout: str) -> tuple[Path, Path]:
    """Check that exactly the layout's files exist; returns the paths of lesions and severity."""
    lesions, severity, others = LAYOUTS[layout]
    expected = sorted([lesions, severity, *others])
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    expect(found == expected, f"files are {found}, expected {expected}")
    for name in others:
        expect((output / name).read_bytes().startswith(PNG_SIGNATURE), f"{name} is not a PNG picture")
    return output / lesions, output / severity


def check_format(lesions: sitk.Image, ct: sitk.Image) -> None:
    """Check pixel type, labels, and that the image lies on the CT's grid to the bit."""
    pixel_type = lesions.GetPixelIDTypeAsString()
    expect(lesions.GetPixelID() == sitk.sitkUInt8, f"lesions are of type {pixel_type}, expected 8-bit unsigned integer")
    for name in ("Size", "Spacing", "Origin", "Direction"):
        got, wanted = (getattr(image, f"Get{name}")() for image in (lesions, ct))
        expect(got == wanted, f"{name.lower()} of the lesions is {got}, the CT's is {wanted}")
    labels = set(np.unique(sitk.GetArrayViewFromImage(lesions)).tolist())
    expect(labels <= LABELS, f"labels are {sorted(labels)}, expected some of {sorted(LABELS)}")


def check_lesions(lesions: sitk.Image, expected: sitk.Image) -> None:
    """Check the Dice coefficient of every label that either image holds."""
    got, wanted = sitk.GetArrayFromImage(lesions), sitk.GetArrayFromImage(expected)
    for label in sorted(LABELS - {0}):
        ours, theirs = got == label, wanted == label
        voxels = int(ours.sum() + theirs.sum())
        dice = 2 * int((ours & theirs).sum()) / voxels if voxels else 1.0
        expect(dice >= MIN_DICE, f"Dice of label {label} with the expected is {dice:.3f}, below {MIN_DICE}")


def read_json(path: Path) -> Any:
    """Read strict JSON: NaN and infinity, which the platform turns into null, are failures."""

    def refuse(constant: str) -> None:
        raise CheckError(f"{path.name} holds {constant}, which is not JSON")

    try:
        return json.loads(path.read_text(), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise CheckError(f"{path.name} is not JSON: {error}") from error


def check_severity(severity: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check the lobes one by one, then the total."""
    names, expected_names = ([lobe["name"] for lobe in report["lobes"]] for report in (severity, expected))
    expect(names == expected_names, f"lobes are {names}, expected {expected_names}")
    for lobe, wanted in zip(severity["lobes"], expected["lobes"], strict=True):
        for key in ("label", "score"):
            expect(lobe[key] == wanted[key], f"{key} of {lobe['name']} is {lobe[key]}, expected {wanted[key]}")
        difference = abs((lobe["percent"] or 0) - (wanted["percent"] or 0))
        expect(
            (lobe["percent"] is None) == (wanted["percent"] is None) and difference <= MAX_PERCENT_DIFFERENCE,
            f"percent of {lobe['name']} is {lobe['percent']}, expected {wanted['percent']} ± {MAX_PERCENT_DIFFERENCE}",
        )
    total, wanted_total = severity["total_score"], expected["total_score"]
    expect(total == wanted_total, f"total score is {total}, expected {wanted_total}")


def print_table(severity: dict[str, Any]) -> None:
    """Print the involvement of the lobes."""
    columns = ("volume_ml", "lesion_ml", "percent", "score")
    print(f"{'lobe':<18}" + "".join(f"{column:>12}" for column in columns))
    for lobe in severity["lobes"]:
        cells = ("-" if lobe[column] is None else f"{lobe[column]:.4g}" for column in columns)
        print(f"{lobe['name']:<18}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"total score {severity['total_score']}")


def check(output: Path, layout: str, ct: Path, expected: Path | None) -> None:
    """Check a folder of outputs; without expected ones, their form only. Prints the table of the lobes."""
    lesions_path, severity_path = check_files(output, layout)
    lesions, severity = sitk.ReadImage(str(lesions_path)), read_json(severity_path)
    check_format(lesions, sitk.ReadImage(str(ct)))
    if expected is not None:
        check_lesions(lesions, sitk.ReadImage(str(expected / "lesions.mha")))
        check_severity(severity, read_json(expected / "severity.json"))
    print_table(severity)


def main() -> None:
    """Run from the command line; exit code 1 and one line on stderr when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layout", choices=list(LAYOUTS), required=True)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--expected", type=Path)
    arguments = parser.parse_args()
    try:
        check(arguments.output, arguments.layout, arguments.ct, arguments.expected)
    except CheckError as failure:
        sys.exit(f"{arguments.output}: {failure}")


if __name__ == "__main__":
    main()
