from __future__ import annotations

import json
import struct

import pytest

import batch.cohort
from algorithm.lobes import LOBES
from batch.cohort import COLUMNS, LOBE_KEYS, collect
from batch.errors import InputError


def write_severity(folder, percents: list[float | None], scores: list[int | None], total: int | None) -> None:
    folder.mkdir(parents=True)
    entries = [
        {"name": "", "label": label, "percent": percent, "score": score, "volume_ml": 1.0}
        for label, (percent, score) in enumerate(zip(percents, scores, strict=True), start=1)
    ]
    (folder / "severity.json").write_text(json.dumps({"lobes": entries, "total_score": total, "device": "cpu"}))


def png_size(path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_lobes_are_those_of_the_algorithm() -> None:
    assert {lobe.label: lobe.key for lobe in LOBES} == LOBE_KEYS


def test_writes_table_and_picture(tmp_path) -> None:
    write_severity(tmp_path / "b", [0.0, 1.25, 5.0004, 99.9996, 33.0], [0, 1, 2, 5, 3], 11)
    write_severity(tmp_path / "a,1", [None, 12.5, 12.5, 12.5, 12.5], [None, 2, 2, 2, 2], None)
    write_severity(tmp_path / ".partial-x", [1.0] * 5, [1] * 5, 5)
    assert set(collect(tmp_path)) == {"a,1", "b"}
    assert (tmp_path / "severity.csv").read_text().splitlines() == [
        "case,lul_percent,lul_score,lll_percent,lll_score,rul_percent,rul_score,rll_percent,rll_score,"
        "rml_percent,rml_score,total_score",
        '"a,1",,,12.500,2,12.500,2,12.500,2,12.500,2,',
        "b,0.000,0,1.250,1,5.000,2,100.000,5,33.000,3,11",
    ]
    assert COLUMNS[-1] == "total_score"
    width, height = png_size(tmp_path / "cohort.png")
    assert width == 990 and height > 400


def test_the_picture_shows_the_worst_case_first_and_absent_lobes_as_absent(tmp_path, monkeypatch) -> None:
    write_severity(tmp_path / "mild", [0.0] * 5, [0, 0, 0, 0, 1], 1)
    write_severity(tmp_path / "absent", [None, *[0.0] * 4], [None, 0, 0, 0, 0], None)
    write_severity(tmp_path / "severe", [60.0] * 5, [4, 4, 4, 4, 5], 21)
    draw, drawn = batch.cohort._draw_scores, []
    monkeypatch.setattr(batch.cohort, "_draw_scores", lambda axes, *rest: (draw(axes, *rest), drawn.append(axes)))
    collect(tmp_path)
    (axes,) = drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["severe", "mild", "absent"]
    shown = axes.images[0].get_array()
    assert shown.tolist() == [[4, 4, 4, 4, 5], [0, 0, 0, 0, 1], [None, 0, 0, 0, 0]]


def test_a_large_cohort_fits_a_picture(tmp_path) -> None:
    for number in range(300):
        write_severity(tmp_path / f"{number:03}", [1.0] * 5, [1] * 5, 5)
    collect(tmp_path)
    assert png_size(tmp_path / "cohort.png")[1] < 3000


def test_no_results_write_nothing(tmp_path) -> None:
    assert collect(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_earlier_scores_do_not_stay_where_no_case_is_left(tmp_path) -> None:
    write_severity(tmp_path / "a", [1.0] * 5, [1] * 5, 5)
    collect(tmp_path)
    assert collect(tmp_path, without=["a"]) == {}
    assert (tmp_path / "severity.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert not (tmp_path / "cohort.png").exists()


def test_refuses_a_damaged_report(tmp_path) -> None:
    write_severity(tmp_path / "a", [1.0] * 5, [1] * 5, 5)
    (tmp_path / "a" / "severity.json").write_text('{"lobes": 1}')
    write_severity(tmp_path / "b", [1.0] * 5, [1] * 5, 5)
    with pytest.raises(InputError, match=r"a/severity\.json: got .*, expected a report of severity"):
        collect(tmp_path)
    table = (tmp_path / "severity.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["case", "b"]  # the others are there
    (tmp_path / "a" / "severity.json").write_text('{"lobes": [], "total_score": null}')
    with pytest.raises(InputError, match="got other lobes than lul, lll, rul, rll, rml"):
        collect(tmp_path)
