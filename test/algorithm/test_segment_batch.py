from __future__ import annotations

import json
import logging
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from algorithm import __main__ as main
from algorithm.batch_cases import find_cases, require_elsewhere, sha256
from algorithm.errors import InputError
from algorithm.images import read_labels
from algorithm.report import ModelIdentity
from algorithm.segment_batch import CaseFile, segment_cases
from algorithm.severity_table import COLUMNS, write_table
from batch.cases import find_cases as find_batch_cases
from batch.cohort import COLUMNS as BATCH_COLUMNS
from batch.cohort import collect
from batch.results import finished_here, read_case_file, write_case_file

RESULTS = {"case.json", "lesions.mha", "severity.json", "overview.png"}
NAMES = ["a", "b", "c"]


@pytest.fixture
def segmenter(fake_segmenter):
    """The stand-in with the identity that its reports tell."""
    description = SimpleNamespace(identity=ModelIdentity(name="fake", version="0", weights_sha256="0"))
    fake_segmenter.model = SimpleNamespace(description=description)
    return fake_segmenter


@pytest.fixture
def scans(save, ct, lobes, tmp_path) -> Path:
    """A folder of three scans, and one of their lobes beside it."""
    for number, name in enumerate(NAMES):
        save(ct.with_array(ct.array + number), f"scans/{name}.mha")
        save(lobes, f"lobes/{name}.nii.gz" if name == "b" else f"lobes/{name}.mha")
    return tmp_path / "scans"


@pytest.fixture
def run(segmenter, scans, tmp_path):
    """Segment the scans into a folder; the lines that were told, and the failures."""

    def segment(names=NAMES):
        told: list[str] = []
        cases = [case for case in find_cases(scans, tmp_path / "lobes") if case.name in names]
        failures = segment_cases(segmenter, cases, tmp_path / "out", draw=draw, tell=told.append)
        return told, failures

    def draw(ct, segmentation, path: Path) -> None:
        path.write_bytes(b"png")

    return segment


def test_segments_every_case(run, segmenter, tmp_path, ct) -> None:
    told, failures = run()
    assert failures == {}
    assert [line.partition(";")[0] for line in told] == ["1/3 a: done", "2/3 b: done", "3/3 c: done"]
    assert "left" in told[0] and "left" not in told[2]
    for name in NAMES:
        assert {path.name for path in (tmp_path / "out" / name).iterdir()} == RESULTS
        assert read_labels(tmp_path / "out" / name / "lesions.mha").geometry == ct.geometry
    assert (tmp_path / "out" / "severity.csv").read_text().splitlines() == [
        ",".join(COLUMNS),
        *(f"{name},12.500,2,12.500,2,12.500,2,12.500,2,,," for name in NAMES),
    ]


def test_done_cases_are_left_out(run, segmenter, tmp_path) -> None:
    run(["a"])
    told, _ = run()
    assert segmenter.cases == 3
    assert told[0] == "1/3 a: done before"
    run()
    assert segmenter.cases == 3


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("lesions.mha", "missing"),
        ("severity.json", "missing"),
        ("severity.json", "changed"),
        ("overview.png", "missing"),
        ("overview.png", "changed"),
    ],
)
def test_a_case_with_damaged_results_is_done_again(run, segmenter, tmp_path, name, damage) -> None:
    run(["a"])
    path = tmp_path / "out" / "a" / name
    (path.unlink if damage == "missing" else lambda: path.write_text("{}"))()
    run(["a"])
    assert segmenter.cases == 2
    assert run(["a"])[0] == ["1/1 a: done before"]


@pytest.mark.parametrize("scan", ["the same", "another", "unusable"])
@pytest.mark.parametrize("name", ["lesions.mha", "lobes.mha"])
def test_a_mask_that_was_corrected_is_neither_replaced_nor_removed(run, save, ct, lobes, tmp_path, scan, name) -> None:
    run(["a", "b"])
    corrected = tmp_path / "out" / "a" / name
    save(lobes.with_array(lobes.array // 2), f"out/a/{name}")
    before = corrected.read_bytes()
    if scan != "the same" or name == "lobes.mha":  # these lobes are not among the results of this case
        save(ct.with_array(ct.array + 7), "scans/a.mha")
    if scan == "unusable":
        (tmp_path / "scans" / "a.mha").write_text("no scan")
    told, failures = run(["a", "b"])
    assert failures["a"].startswith(f"{corrected}: got a mask that was changed, or does not come from here")
    assert failures.keys() == {"a"} and told[1] == "2/2 b: done before"
    assert corrected.read_bytes() == before
    corrected.unlink()
    assert run(["a"])[1].keys() == ({"a"} if scan == "unusable" else set())


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_masks_that_come_from_elsewhere_are_not_replaced(run, segmenter, tmp_path, damage) -> None:
    run(["a"])
    path = tmp_path / "out" / "a" / "case.json"
    (path.unlink if damage == "missing" else lambda: path.write_text("{}"))()
    assert "does not come from here, in the place of a result" in run(["a"])[1]["a"]
    (tmp_path / "out" / "a" / "lesions.mha").unlink()
    assert run(["a"])[0] == ["1/1 a: done"]


def test_what_a_killed_write_left_is_replaced(run, tmp_path) -> None:
    """Of an earlier scan, as case.json took its new place first."""
    run(["a"])
    (tmp_path / "out" / "a" / ".partial-x").mkdir()
    (tmp_path / "out" / "a" / "lesions.mha").write_text("of an earlier scan")
    assert run(["a"])[0] == ["1/1 a: done"]


def test_inputs_in_the_place_of_results_are_refused_before_any_work(segmenter, scans, run, tmp_path) -> None:
    run()
    given = tmp_path / "out" / "b" / "lobes.mha"
    given.write_bytes((tmp_path / "lobes" / "a.mha").read_bytes())
    table = tmp_path / "cases.csv"
    table.write_text("case,ct,lobes\nb,scans/b.mha,\nc,scans/c.mha,out/a/../b/lobes.mha\n")
    with pytest.raises(InputError, match=r"lobes\.mha: got an input in the place of a result, expected it elsewhere"):
        segment_cases(segmenter, find_cases(table, None), tmp_path / "out", draw=lambda *args: None)
    assert given.is_file() and segmenter.cases == 3


def test_a_broken_link_is_a_case_that_fails(run, segmenter, scans) -> None:
    (scans / "b.mha").unlink()
    (scans / "b.mha").symlink_to(scans / "not-fetched.mha")
    assert run()[1].keys() == {"b"} and segmenter.cases == 2


def test_a_table_of_several_models_says_so(run, tmp_path, caplog) -> None:
    run()
    assert "several models" not in caplog.text
    report = json.loads((tmp_path / "out" / "a" / "severity.json").read_text())
    report["model"]["version"] = "1"
    (tmp_path / "out" / "a" / "severity.json").write_text(json.dumps(report))
    assert write_table(tmp_path / "out") == {}
    assert "fake 1 (0) in fp32: 1 (a); fake 0 (0) in fp32: 2 (b, c)" in caplog.text


def test_lobes_that_are_found_are_kept_and_found_again_by_another(segmenter, scans, tmp_path) -> None:
    def run() -> list[str]:
        told: list[str] = []
        cases = find_cases(scans, None)[:1]
        draw = lambda ct, segmentation, path: path.write_bytes(b"png")  # noqa: E731
        assert segment_cases(segmenter, cases, tmp_path / "out", draw=draw, tell=told.append) == {}
        return told

    run()
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == {*RESULTS, "lobes.mha"}
    assert run() == ["1/1 a: done before"]
    segmenter.lobes_by = "lungmask"
    assert run() == ["1/1 a: done"]
    assert json.loads((tmp_path / "out" / "a" / "severity.json").read_text())["lobes_source"] == "lungmask"


def test_lobes_that_are_given_take_the_place_of_found_ones(segmenter, scans, run, tmp_path) -> None:
    draw = lambda ct, segmentation, path: path.write_bytes(b"png")  # noqa: E731
    segment_cases(segmenter, find_cases(scans, None)[:1], tmp_path / "out", draw=draw, tell=lambda line: None)
    run(["a"])
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == RESULTS


def test_the_table_does_not_hold_what_an_earlier_input_of_a_failed_case_gave(run, scans, tmp_path) -> None:
    run()
    (scans / "b.mha").write_text("no scan")
    for names, failed in ((NAMES, {"b"}), (["a"], set())):  # nor does that of a later run of others
        assert run(names)[1].keys() == failed
        rows = (tmp_path / "out" / "severity.csv").read_text().splitlines()[1:]
        assert [row.partition(",")[0] for row in rows] == ["a", "c"]


def test_headers_without_voxels_are_refused_and_folders_without_files_left_alone(scans, ct, save) -> None:
    (scans / "empty").mkdir()
    assert [case.name for case in find_cases(scans, None)] == NAMES
    save(ct, "scans/d.mhd")
    with pytest.raises(InputError, match=r"d\.mhd: got a header without its voxels, .*; save it as \.mha"):
        find_cases(scans, None)


@pytest.mark.parametrize(
    ("suffix", "end", "detached"),
    [
        (".nrrd", b"\n\n", b"\ndata file: d.raw\n\n"),
        (".mha", b"ElementDataFile = LOCAL\n", b"ElementDataFile = d.raw\n"),
    ],
)
def test_other_headers_without_voxels_are_refused(scans, ct, save, suffix, end, detached) -> None:
    save(ct, f"scans/d{suffix}")
    assert [case.name for case in find_cases(scans, None)] == [*NAMES, "d"]
    header, found, voxels = (scans / f"d{suffix}").read_bytes().partition(end)
    assert found
    (scans / "d.raw").write_bytes(voxels)
    (scans / f"d{suffix}").write_bytes(header + detached)
    with pytest.raises(InputError, match=rf"d\{suffix}: got a header without its voxels, .*; save it as \.mha"):
        find_cases(scans, None)


def test_results_among_the_scans_would_become_cases_and_are_refused(scans, tmp_path) -> None:
    for out in (scans, scans / "out", scans / "a" / ".." / "out"):
        with pytest.raises(InputError, match=r"got a folder for results in that of the scans, .*; expected one else"):
            require_elsewhere(out, scans)
    require_elsewhere(tmp_path / "scans2", scans)
    require_elsewhere(tmp_path / "out", tmp_path / "cases.csv")


def test_a_series_in_a_folder_of_its_own_is_refused(scans) -> None:
    (scans / "d" / "series1").mkdir(parents=True)
    (scans / "d" / "series1" / "1.dcm").write_text("slice")
    with pytest.raises(InputError, match=r"d: got folders in a folder, expected the slices of one series directly"):
        find_cases(scans, None)


def test_another_model_or_other_inputs_are_done_again(run, segmenter, save, lobes, ct, tmp_path) -> None:
    run(["a"])
    save(ct.with_array(ct.array + 7), "scans/a.mha")
    run(["a"])
    assert segmenter.cases == 2
    save(lobes, "lobes/a.mha", compressed=False)
    run(["a"])
    assert segmenter.cases == 3
    segmenter.precision = "bf16"
    assert run(["a"])[0] == ["1/1 a: done"]
    assert run(["a"])[0] == ["1/1 a: done before"]
    segmenter.model.description.identity = ModelIdentity(name="fake", version="0", weights_sha256="1")
    run(["a"])
    assert segmenter.cases == 5


def test_nothing_is_left_of_an_earlier_input_of_a_case_that_fails(run, segmenter, scans, tmp_path) -> None:
    run(["a", "b"])
    segmenter.model.description.identity = ModelIdentity(name="fake", version="0", weights_sha256="1")
    segmenter.error = RuntimeError("boom")
    (scans / "b.mha").write_text("no scan")
    run(["a", "b"])
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == RESULTS  # of another model, but of this scan
    assert not any((tmp_path / "out" / "b").iterdir())


def test_failures_are_collected_and_the_others_go_on(run, segmenter, tmp_path, scans, caplog) -> None:
    (scans / "b.mha").write_text("no scan")
    segmenter.before = lambda: segmenter.__setattr__("error", RuntimeError("boom") if segmenter.cases else None)
    told, failures = run()
    assert failures.keys() == {"b", "c"}
    assert failures["b"].startswith(f"{scans}/b.mha: damaged or no MetaImage file")
    assert failures["c"] == "Error: RuntimeError: boom"
    assert "boom" in caplog.text and "no MetaImage" not in caplog.text
    assert not (tmp_path / "out" / "b").exists()
    assert (tmp_path / "out" / "severity.csv").read_text().count("\n") == 2
    assert sorted(line.partition(":")[0][-1] for line in told) == NAMES


def test_a_picture_that_fails_fails_its_case(run, segmenter, scans, tmp_path) -> None:
    def draw(ct, segmentation, path: Path) -> None:
        raise MemoryError("no memory")

    failures = segment_cases(segmenter, find_cases(scans, tmp_path / "lobes")[:1], tmp_path / "out", draw=draw)
    assert failures == {"a": "Error: MemoryError: no memory"}
    assert list((tmp_path / "out" / "a").iterdir()) == []


def test_reads_and_writes_while_it_computes(segmenter, scans, tmp_path, monkeypatch) -> None:
    """The second case is computed while the third is read and the first is written; each waits for the others."""
    meeting = threading.Barrier(3, timeout=10)
    reads, writes = [], []

    def before() -> None:
        if segmenter.cases == 1:
            meeting.wait()

    def read(ct, lobes):
        reads.append(ct)
        if len(reads) == 3:
            meeting.wait()
        return original(ct, lobes)

    def draw(ct, segmentation, path: Path) -> None:
        writes.append(path)
        if len(writes) == 1:
            meeting.wait()
        path.write_bytes(b"png")

    from algorithm import segment_batch

    original = segment_batch.read_case
    monkeypatch.setattr(segment_batch, "read_case", read)
    segmenter.before = before
    failures = segment_cases(segmenter, find_cases(scans, tmp_path / "lobes"), tmp_path / "out", draw=draw)
    assert failures == {}


def test_what_a_killed_run_left_is_removed(run, tmp_path) -> None:
    (tmp_path / "out" / "a" / ".partial-x").mkdir(parents=True)
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    run(["a"])
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == {*RESULTS, "notes.txt"}


def test_one_process_at_a_time(run, segmenter, tmp_path, scans) -> None:
    def second_process() -> None:
        with pytest.raises(InputError, match="another segment-batch is working on this folder"):
            run(["a"])

    segmenter.before = second_process
    assert run(["a"])[1] == {}


def test_refuses_a_folder_that_cannot_be_written(segmenter, scans, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        segment_cases(segmenter, find_cases(scans, None), tmp_path / "file" / "out", draw=print)


def test_no_cases_in_a_folder_or_table(tmp_path) -> None:
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match="got nothing to use"):
        find_cases(tmp_path, None)
    with pytest.raises(InputError, match="none: got no such folder"):
        find_cases(tmp_path / "none", None)
    (tmp_path / "cases.csv").write_text("case,ct\n")
    with pytest.raises(InputError, match="got 0 rows"):
        find_cases(tmp_path / "cases.csv", None)
    with pytest.raises(InputError, match="got a table and --lobes"):
        find_cases(tmp_path / "cases.csv", tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,x.mha\na,y.mha\n", "line 3: got the case 'a' twice"),
        ("a,\n", "line 2: got no ct for the case 'a'"),
        ("a/b,x.mha\n", "got the case name 'a/b'"),
        (",x.mha\n", "got the case name ''"),
        ("a,x.mhd\n", "got a header without its voxels"),
    ],
)
def test_refuses_a_table_that_cannot_be_used(tmp_path, rows, message) -> None:
    (tmp_path / "cases.csv").write_text("case,ct\n" + rows)
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path / "cases.csv", None)


def test_refuses_scans_without_lobes_and_doubles(scans, tmp_path) -> None:
    (tmp_path / "lobes" / "c.mha").unlink()
    with pytest.raises(InputError, match=r"got no lobe mask for 1 scans \(c\)"):
        find_cases(scans, tmp_path / "lobes")
    (scans / "a.nii").write_text("")
    with pytest.raises(InputError, match=r"got a\.mha and a\.nii, expected one file a case"):
        find_cases(scans, None)


def test_reads_folders_and_tables_as_batch_does(scans, tmp_path) -> None:
    (scans / "d").mkdir()
    (scans / "d" / "1.dcm").write_text("slice")
    (tmp_path / "cases.csv").write_text("case,ct,lobes\nz,scans/d,lobes/a.mha\ny,scans/a.mha,lobes/b.nii.gz\n")
    for path in (scans, tmp_path / "cases.csv"):
        ours, theirs = find_cases(path, None), find_batch_cases(path, None)
        assert [case.name for case in ours] == [case.name for case in theirs]
        assert [case.sha256() for case in ours] == [case.identity() for case in theirs]


def test_results_have_the_form_of_those_of_the_platform(run, segmenter, tmp_path, scans) -> None:
    run(["a", "b"])
    out = tmp_path / "out"
    assert COLUMNS == BATCH_COLUMNS
    table = (out / "severity.csv").read_bytes()
    collect(out)
    assert (out / "severity.csv").read_bytes() == table
    (case,) = (case for case in find_cases(scans, tmp_path / "lobes") if case.name == "a")
    assert finished_here(out / "a", case.sha256()).keys() == RESULTS - {"case.json"}
    assert read_case_file(out / "b").model_dump() == json.loads((out / "b" / "case.json").read_text())


def test_results_of_the_platform_are_done(run, segmenter, tmp_path, scans) -> None:
    run(["a"])
    folder = tmp_path / "out" / "a"
    inputs = CaseFile.model_validate_json((folder / "case.json").read_text()).inputs
    for name in ("case.json", "overview.png"):
        (folder / name).unlink()
    write_case_file(folder, computed="job-1", inputs=inputs)
    assert run(["a"])[0] == ["1/1 a: done before"]


def test_a_damaged_report_fails_its_case_alone(run, tmp_path) -> None:
    report = tmp_path / "out" / "other" / "severity.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    _, failures = run(["a"])
    assert failures == {"other": f"{report}: got no report of severity, expected what `segment` writes; delete it"}
    table = (tmp_path / "out" / "severity.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in table] == ["case", "a"]
    report.write_text('{"lobes": [], "total_score": null}')
    assert write_table(tmp_path / "out") == {
        "other": f"{report}: got other lobes than lul, lll, rul, rll, rml; delete it"
    }


def test_a_folder_is_hashed_by_its_contents_alone(tmp_path) -> None:
    for folder, names in (("one", "xy"), ("two", "qp")):
        (tmp_path / folder).mkdir()
        for name, content in zip(names, ("first", "second"), strict=True):
            (tmp_path / folder / name).write_text(content)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")


@pytest.fixture
def command(segmenter, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "_load", lambda *arguments: segmenter)
    monkeypatch.setattr(main, "_draw", lambda ct, segmentation, path: path.write_bytes(b"png"))
    handler = signal.getsignal(signal.SIGTERM)
    arguments = ["segment-batch", scans, "--lobes", tmp_path / "lobes", "--out", tmp_path / "out"]
    yield lambda: CliRunner().invoke(main.app, [str(word) for word in arguments])
    signal.signal(signal.SIGTERM, handler)
    logging.captureWarnings(False)


def test_command(command, tmp_path) -> None:
    result = command()
    assert (result.exit_code, result.stderr) == (0, "")
    assert "3/3 c: done\n" in result.stdout
    assert (tmp_path / "out" / "severity.csv").is_file()


def test_command_lists_failures_at_its_end_and_fails(command, scans) -> None:
    (scans / "a.mha").write_text("no scan")
    result = command()
    assert result.exit_code == 2
    assert result.stderr == "1 of 3 cases failed; see above\n"
    assert result.stdout.splitlines()[-1].startswith(f"failed: a: {scans}/a.mha: damaged or no MetaImage file")
