from __future__ import annotations

import hashlib

import pytest

from algorithm.images import SUFFIXES as ALGORITHM_SUFFIXES
from algorithm.sockets import CT, LOBES
from batch.cases import LOBES_SLUG, OTHER_SUFFIXES, SCAN_SLUG, SUFFIXES, find_cases, sha256, shortened
from batch.errors import InputError


def test_sockets_are_those_of_the_algorithm() -> None:
    assert (SCAN_SLUG, LOBES_SLUG) == (CT.slug, LOBES.slug)


def test_pairs_by_name_and_hashes(write_cases, inputs) -> None:
    write_cases(["b", "a.1"])
    first, second = find_cases(**inputs)
    assert (first.name, second.name) == ("a.1", "b")
    assert first.files == {"ct-image": inputs["scans"] / "a.1.mha", "pulmonary-lobes": inputs["lobes"] / "a.1.mha"}
    content = (inputs["scans"] / "a.1.mha").read_bytes()
    assert first.identity()["ct-image"] == hashlib.sha256(content).hexdigest()


def test_takes_every_kind_of_file(inputs, scan) -> None:
    for name in ("a.mha", "b.nii.gz", "c.NII"):
        (inputs["scans"] / name).write_text(name)
    (inputs["scans"] / "d.e").mkdir()
    (inputs["scans"] / "d.e" / "I0001").write_text("slice")
    cases = find_cases(inputs["scans"], None)
    assert [case.name for case in cases] == ["a", "b", "c", "d.e"]
    assert {frozenset(case.files) for case in cases} == {frozenset({"ct-image"})}


def test_a_folder_is_hashed_by_its_contents_alone(tmp_path) -> None:
    for folder, names in (("one", ("x", "y")), ("two", ("q", "p"))):
        (tmp_path / folder).mkdir()
        for name, content in zip(names, ("first", "second"), strict=True):
            (tmp_path / folder / name).write_text(content)
    (tmp_path / "two" / ".hidden").write_text("")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    (tmp_path / "two" / "p").write_text("other")
    assert sha256(tmp_path / "one") != sha256(tmp_path / "two")


def test_other_files_are_left_alone_and_named(write_cases, inputs, caplog) -> None:
    (inputs["scans"] / "notes.txt").write_text("")
    (inputs["scans"] / ".hidden").write_text("")
    (inputs["scans"] / "empty").mkdir()
    write_cases(["a"])
    assert [case.name for case in find_cases(**inputs)] == ["a"]
    assert "left alone: empty, notes.txt" in caplog.text


def test_series_in_folders_of_folders_are_refused(write_cases, inputs) -> None:
    write_cases(["a"])
    for name in "bc":
        (inputs["scans"] / name / "series1").mkdir(parents=True)
        (inputs["scans"] / name / "series1" / "1.dcm").write_text("slice")
    with pytest.raises(InputError, match=r"got 2 folders whose files lie in folders of their own \(b, c\), expected"):
        find_cases(**inputs)


def test_every_format_of_the_algorithm_is_sent_or_refused() -> None:
    assert {*SUFFIXES, *OTHER_SUFFIXES} >= set(ALGORITHM_SUFFIXES)


@pytest.mark.parametrize("kind", ["scans", "lobes"])
def test_refuses_images_that_cannot_be_sent(write_cases, inputs, kind) -> None:
    write_cases(["c2"])
    for name in ("c1.mhd", "c1.raw", "c3.NRRD", "notes.txt"):
        (inputs[kind] / name).write_text("")
    message = rf"{kind}: got 2 files in formats that cannot be sent \(c1\.mhd, c3\.NRRD\), expected \.mha, \.nii\.gz, "
    with pytest.raises(InputError, match=message + r".*; save them so, or take them out"):
        find_cases(**inputs)


def test_refuses_files_without_a_partner(write_cases, inputs) -> None:
    write_cases(["a", "b"])
    (inputs["lobes"] / "b.mha").rename(inputs["lobes"] / "c.mha")
    with pytest.raises(InputError, match=r"got 1 scans without a mask of the same name \(b\), expected one lobe mask"):
        find_cases(**inputs)
    (inputs["scans"] / "b.mha").unlink()
    assert [case.name for case in find_cases(**inputs)] == ["a"]  # a part of the scans, beside the masks of all


def test_refuses_two_files_of_one_case(inputs) -> None:
    for name in ("a.mha", "a.nii.gz"):
        (inputs["scans"] / name).write_text("")
    with pytest.raises(InputError, match=r"got a\.mha and a\.nii\.gz, expected one file a case"):
        find_cases(inputs["scans"], None)


def test_refuses_empty_and_missing_folders(inputs, tmp_path) -> None:
    with pytest.raises(
        InputError, match=r"got nothing to use, expected \.mha, \.nii\.gz, \.nii files or DICOM folders"
    ):
        find_cases(**inputs)
    with pytest.raises(InputError, match="none: got no such folder"):
        find_cases(tmp_path / "none", inputs["lobes"])


@pytest.mark.parametrize("name", ["", ".a", "a/b", 'a"b', "a\tb", "x" * 81])
def test_refuses_names_that_cannot_be_used(tmp_path, name) -> None:
    quoted = name.replace('"', '""')
    (tmp_path / "cases.csv").write_text(f'case,ct\n"{quoted}",cases.csv\n')
    with pytest.raises(InputError, match=r"got the case name .*, expected 1 to 80 characters"):
        find_cases(tmp_path / "cases.csv", None)


def test_reads_a_table(tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "1.mha").write_text("")
    (tmp_path / "1.nii.gz").write_text("")
    (tmp_path / "cases.csv").write_text("split,case,ct,lobes\ntrain,p2,sub/1.mha,1.nii.gz\ntest,p1,1.nii.gz,1.nii.gz\n")
    first, second = find_cases(tmp_path / "cases.csv", None)
    assert (first.name, second.name) == ("p1", "p2")
    assert second.files == {"ct-image": tmp_path / "sub/1.mha", "pulmonary-lobes": tmp_path / "1.nii.gz"}


def test_a_table_may_have_no_lobes_for_some_cases(tmp_path) -> None:
    (tmp_path / "1.mha").write_text("")
    (tmp_path / "cases.csv").write_text("case,ct,lobes\na,1.mha,1.mha\nb,1.mha,\n")
    with_lobes, without = find_cases(tmp_path / "cases.csv", None)
    assert (with_lobes.files.keys(), without.files.keys()) == ({"ct-image", "pulmonary-lobes"}, {"ct-image"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,scan\na,b\n", "got 1 rows with the columns case, scan, expected case, ct"),
        ("case,ct\n", "got 0 rows"),
        ("", "got 0 rows with the columns none"),
        ("case,ct\na,none.mha\n", r"line 2: got no file for ct of case 'a'"),
        ("case,ct,lobes\na,cases.csv,none.mha\n", r"line 2: got no file for lobes of case 'a'"),
        ("case,ct,lobes\na,,cases.csv\n", r"line 2: got no file for ct of case 'a'"),
        ("case,ct\na,cases.csv\n", r"cases\.csv: got no kind of file that can be sent, expected \.mha, .* or a DICOM"),
        ("case,ct,lobes\na,.,.\n", r"got no kind of file that can be sent, expected \.mha, \.nii\.gz, \.nii; convert"),
        ("case,ct\na,cases.csv\na,cases.csv\n", "line 3: got the case 'a' twice"),
    ],
)
def test_refuses_a_table_that_cannot_be_used(tmp_path, text, message) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path / "cases.csv", None)


def test_refuses_a_table_that_is_missing_or_has_lobes_beside_it(tmp_path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        find_cases(tmp_path / "none.csv", None)
    with pytest.raises(InputError, match="got a table and --lobes"):
        find_cases(tmp_path / "none.csv", tmp_path)


def test_long_lists_are_shortened() -> None:
    assert shortened("fedcba") == "a, b, c, d, e, ..."
