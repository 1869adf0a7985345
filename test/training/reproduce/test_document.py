import re

import pytest

from training.cases import read_cases
from training.reproduce.document import about_vote, goals, results_document

ROWS = {
    "threshold (no vessels)": 0.30,
    "CAM raw": 0.25,
    "CAM + refinement": 0.30,
    "dRAM raw": 0.35,
    "+ regulariser": 0.40,
    "+ context": 0.48,
    "supervised": 0.60,
}


SUBTYPES = {"ground_glass": 0.18, "mixed": 0.27, "consolidation": 0.71}


def results(kappa: float | None = 0.8, **changed: float | None) -> dict[str, list[dict[str, object]]]:
    """Of the stage ablate, as far as goals are set for them."""
    subtypes = {f"{name}_iou": changed.pop(name, iou) for name, iou in SUBTYPES.items()}
    rows = [{"row": name, "mean_iou": iou, "kappa": kappa} for name, iou in (ROWS | changed).items()]
    return {"rows": rows, "subtypes": [{"row": "dRAM full (+ context)", **subtypes}]}


def words(text: str) -> dict[str, tuple[str, str]]:
    """What was measured, and whether it is what was aimed at, by the name of the line."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {name: (measured, word) for name, measured, _, word in lines}


def test_goals_are_ratios_and_the_order_of_the_rows():
    assert words(goals(results())) == {
        "+ context / supervised": ("0.800", "holds"),
        "+ context / CAM + refinement": ("1.600", "holds"),
        "kappa of + context": ("0.800", "holds"),
        "threshold (no vessels) < supervised": ("0.300, 0.600", "holds"),
        "CAM raw < CAM + refinement": ("0.250, 0.300", "holds"),
        "dRAM raw < + regulariser": ("0.350, 0.400", "holds"),
        "+ regulariser < + context": ("0.400, 0.480", "holds"),
        "+ context: ground-glass < mixed": ("0.180, 0.270", "holds"),
        "+ context: mixed < consolidation": ("0.270, 0.710", "holds"),
    }


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"supervised": 0.61}, "+ context / supervised"),
        ({"CAM + refinement": 0.33}, "+ context / CAM + refinement"),
        ({"dRAM raw": 0.41}, "dRAM raw < + regulariser"),
        ({"+ regulariser": 0.48}, "+ regulariser < + context"),
        ({"mixed": 0.18}, "+ context: ground-glass < mixed"),
        ({"consolidation": None}, "+ context: mixed < consolidation"),
    ],
)
def test_what_is_missed_is_said(changed, missed):
    found = words(goals(results(**changed)))
    assert [name for name, (_, word) in found.items() if word == "**does not hold**"] == [missed]


@pytest.mark.parametrize("kappa", [0.7, None])
def test_too_little_kappa_or_none(kappa):
    assert words(goals(results(kappa)))["kappa of + context"][1] == "**does not hold**"


def test_how_many_lesions_vote_is_said_with_what_was_tried():
    text = about_vote({"shortlist": 20, "left_out_iou": {"10": 0.3219, "20": 0.648}})
    assert text.startswith("The vote looks at the 20 lesions") and text.endswith("is 0.322 with 10, 0.648 with 20.")
    alone = about_vote({"shortlist": 10, "left_out_iou": {}})
    assert alone.endswith("looks at the 10 lesions of known subtype that are nearest in volume.")


def test_the_document_takes_its_numbers_from_the_run(finished):
    text = results_document(finished, command="python -m training reproduce", lobes=None, presence=None, pictures="p")
    assert "    python -m training reproduce\n" in text
    assert (finished.folder("ablate") / "table_b.md").read_text().strip() in text
    assert (finished.folder("ablate") / "table_a.md").read_text().strip() in text
    assert "3 for train, 1 for validation, 1 for test" in text
    assert about_vote(finished.record("subtypes")["results"]) in text
    assert "](p/figure.png)" in text and "](p/slices.png)" in text
    assert re.search(r"on \d+ cores, .+ with version ", text)
    record = finished.record("regress")
    minutes, commit = record["seconds"] / 60, record["environment"]["commit"]
    assert re.search(rf"\| regress \| {minutes:.1f} \| .+ \| {commit[:10]}", text)
    healthy = sum(not any(case.scores.values()) for case in read_cases(finished.data) if case.split == "train")
    assert f"; {healthy} of the training cases have score 0 in every lobe." in text
    assert "Real scans" not in text and "Lobes from" not in text
