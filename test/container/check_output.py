"""Check the outputs of one case against the expected ones; runs where the algorithm runs (its image or environment)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

# Files that a run leaves behind, and nothing else: (lesions, severity, lobes where they were found, pictures).
LAYOUTS = {
    "platform": (
        "images/covid-19-lesion-segmentation/output.mha",
        "covid-19-severity.json",
        "images/pulmonary-lobes/output.mha",
        (),
    ),
    "segment": ("lesions.mha", "severity.json", "lobes.mha", ("overview.png",)),
}
LESION_LABELS = {0, 1, 2, 3}
LOBE_LABELS = {0, 1, 2, 3, 4, 5}
MIN_DICE = 0.98
MIN_DICE_OF_FOUND_LUNGS, MIN_DICE_OF_FOUND_LOBES = 0.9, 0.6  # with the given ones; the sample's voxels are coarse
MAX_PERCENT_DIFFERENCE = 0.5  # percentage points of a lobe
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class CheckError(Exception):
    """An output is not as it must be; the message says which and how."""


def expect(condition: bool, message: str) -> None:
    """Raise CheckError with the message unless the condition holds."""
    if not condition:
        raise CheckError(message)


def check_files(output: Path, layout: str, *, with_lobes: bool) -> tuple[Path, Path, Path]:
    """Check that exactly the layout's files exist; returns the paths of lesions, severity and found lobes."""
    lesions, severity, lobes, others = LAYOUTS[layout]
    expected = sorted([lesions, severity, *others, *([lobes] if with_lobes else [])])
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    expect(found == expected, f"files are {found}, expected {expected}")
    for name in others:
        expect((output / name).read_bytes().startswith(PNG_SIGNATURE), f"{name} is not a PNG picture")
    return output / lesions, output / severity, output / lobes


def check_format(mask: sitk.Image, ct: sitk.Image, name: str, allowed: set[int]) -> None:
    """Check pixel type, labels, and that a mask lies on the CT's grid to the bit."""
    pixel_type = mask.GetPixelIDTypeAsString()
    expect(mask.GetPixelID() == sitk.sitkUInt8, f"{name} are of type {pixel_type}, expected 8-bit unsigned integer")
    for part in ("Size", "Spacing", "Origin", "Direction"):
        got, wanted = (getattr(image, f"Get{part}")() for image in (mask, ct))
        expect(got == wanted, f"{part.lower()} of the {name} is {got}, the CT's is {wanted}")
    labels = set(np.unique(sitk.GetArrayViewFromImage(mask)).tolist())
    expect(labels <= allowed, f"labels of the {name} are {sorted(labels)}, expected some of {sorted(allowed)}")


def dice_of(ours: Any, theirs: Any) -> float:
    """Dice coefficient of two masks; 1 where both are empty."""
    voxels = int(ours.sum() + theirs.sum())
    return 2 * int((ours & theirs).sum()) / voxels if voxels else 1.0


def check_lesions(lesions: sitk.Image, expected: sitk.Image) -> None:
    """Check the Dice coefficient of every label that either image holds."""
    got, wanted = sitk.GetArrayFromImage(lesions), sitk.GetArrayFromImage(expected)
    for label in sorted(LESION_LABELS - {0}):
        dice = dice_of(got == label, wanted == label)
        expect(dice >= MIN_DICE, f"Dice of label {label} with the expected is {dice:.3f}, below {MIN_DICE}")


def check_lobes(found: sitk.Image, given: sitk.Image) -> None:
    """Check that the lobes that were found are about those that would have been given."""
    ours, theirs = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(given)
    dices = {"both lungs": dice_of(ours > 0, theirs > 0)}
    dices |= {f"lobe {label}": dice_of(ours == label, theirs == label) for label in sorted(LOBE_LABELS - {0})}
    print("found lobes: " + ", ".join(f"{name} {dice:.3f}" for name, dice in dices.items()) + " (Dice)")
    for name, dice in dices.items():
        least = MIN_DICE_OF_FOUND_LUNGS if name == "both lungs" else MIN_DICE_OF_FOUND_LOBES
        expect(dice >= least, f"Dice of {name} with the given lobes is {dice:.3f}, below {least}")


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


def check(output: Path, layout: str, ct: Path, *, lobes: Path | None, expected: Path | None) -> None:
    """Check a folder of outputs and print the table of the lobes.

    Args:
        output: the folder.
        layout: which files it must hold.
        ct: the case's CT.
        lobes: the case's lobes, where it was run without them and had to find them.
        expected: folder with lesions.mha and severity.json; without it, the form alone is checked.
    """
    lesions_path, severity_path, lobes_path = check_files(output, layout, with_lobes=lobes is not None)
    lesions, severity, scan = sitk.ReadImage(str(lesions_path)), read_json(severity_path), sitk.ReadImage(str(ct))
    check_format(lesions, scan, "lesions", LESION_LABELS)
    if lobes is not None:
        found = sitk.ReadImage(str(lobes_path))
        check_format(found, scan, "lobes", LOBE_LABELS)
        check_lobes(found, sitk.ReadImage(str(lobes)))
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
    parser.add_argument("--lobes", type=Path)
    parser.add_argument("--expected", type=Path)
    arguments = parser.parse_args()
    try:
        check(arguments.output, arguments.layout, arguments.ct, lobes=arguments.lobes, expected=arguments.expected)
    except CheckError as failure:
        sys.exit(f"{arguments.output}: {failure}")


if __name__ == "__main__":
    main()
