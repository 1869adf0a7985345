import numpy as np
import pytest
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from training.cases import Case, all_problems, of_split, read_cases, read_scan

HEADER = "case,ct,lobes,lul,lll,rul,rll,rml,lesions,vessels,split\n"
SHAPE = (4, 5, 6)
LOBES = np.broadcast_to(np.arange(6), SHAPE).astype(np.uint8)  # background and a plane for each lobe
GRID = Geometry(SHAPE, (2.0, 1.0, 1.0), (-10.0, 5.0, 30.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
SHIFTED = Geometry(SHAPE, (2.0, 1.0, 1.0), (-10.0, 5.0, 32.0), GRID.direction)


def write_image(path, array, grid=GRID):
    sitk.WriteImage(Volume(array, grid).to_sitk(), str(path))


@pytest.fixture
def data(tmp_path):
    for name in ("ct", "ct2"):
        write_image(tmp_path / f"{name}.mha", np.where(LOBES > 0, -850, -1000).astype(np.int16))
    write_image(tmp_path / "lobes.mha", LOBES)
    return tmp_path


def write(data, *rows, header=HEADER):
    (data / "cases.csv").write_text(header + "".join(f"{row}\n" for row in rows))


def refusal(data):
    with pytest.raises(InputError) as caught:
        read_cases(data)
    return str(caught.value).removeprefix(f"{data}/cases.csv: ")


def test_reads_scores_and_what_is_unknown(data):
    write(data, "a,ct.mha,lobes.mha,0,1,2,,5,,,train", "b,ct2.mha,lobes.mha,0,0,0,0,0,lobes.mha,,test")
    first, second = read_cases(data)
    assert first.scores == {1: 0, 2: 1, 3: 2, 5: 5} and first.lesions is None
    assert second.lesions == data / "lobes.mha"
    assert [case.name for case in of_split([first, second], "test")] == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + HEADER + "a,ct.mha,lobes.mha,0,1,2,3,5,,,train\n",
        HEADER.replace(",", " , ") + "\n  \n a , ct.mha , lobes.mha , 0,1 ,2,3,5, , , train \n,,,,,,,,,,\n",
        (HEADER + "a,ct.mha,lobes.mha,0,1,2,3,5,,,train\n").replace("\n", "\r\n"),
        "age," + HEADER + "61,a,ct.mha,lobes.mha,0,1,2,3,5,,,train",
        HEADER + '"a","ct.mha","lobes.mha",0,1,2,3,5,"","",train',
    ],
    ids=["byte order mark", "white space and blank lines", "CRLF", "another column", "quotes"],
)
def test_what_spreadsheets_write(data, content):
    (data / "cases.csv").write_bytes(content.encode())
    scores = {1: 0, 2: 1, 3: 2, 4: 3, 5: 5}
    assert read_cases(data) == [Case("a", data / "ct.mha", data / "lobes.mha", scores, None, None, "train")]


def test_all_problems_are_reported_together_with_their_lines(data):
    write(
        data,
        "a,ct.mha,lobes.mha,0,1,2,6,5,,,train",
        "",
        "b,gone.mha,,0,1,2,3,5,,,train",
        "c,ct2.mha,lobes.mha,0,1,2,3.0,5,,,training",
        "a,ct.mha,lobes.mha,0,1,2,3,5,,,test",
        "A,ct.mha,lobes.mha,0,1,2,3,5,,,train",
        "d,ct.mha,lobes.mha,0,1,2,3,5,,,validation",
        "e,ct.mha,lobes.mha",
    )
    assert refusal(data).split("\n  ") == [
        "9 problems",
        "line 2: rll: got score '6', expected 0, 1, 2, 3, 4, 5 or nothing",
        "line 4: lobes is empty",
        f"line 4: ct: {data}/gone.mha: no such file or folder",
        "line 5: rll: got score '3.0', expected 0, 1, 2, 3, 4, 5 or nothing",
        "line 5: split: got 'training', expected one of train, validation, test",
        "line 6: case a is also on line 2, for train instead of test",
        "line 7: case A is also on line 2 as a; where capitals do not count, their files would be the same",
        "line 8: ct ct.mha is for validation, but on line 2 it is for train",
        "line 9: got 3 values, expected one for each column of the first line; put commas or quotes right",
    ]


def test_what_the_whole_table_lacks_is_told_with_the_problems_of_its_rows(data):
    write_image(data / "shifted.mha", LOBES, SHIFTED)
    write(
        data,
        "a,gone.mha,lobes.mha,0,0,0,0,0,,,train",
        "b,ct.mha,shifted.mha,0,0,7,0,0,,,train",
        "b,ct.mha,lobes.mha,0,0,3,0,0,,,test",
    )
    lines = refusal(data).split("\n  ")
    assert lines[:4] == [
        "5 problems",
        "no training case with a lesion: every score is 0",
        f"line 2: ct: {data}/gone.mha: no such file or folder",
        "line 3: rul: got score '7', expected 0, 1, 2, 3, 4, 5 or nothing",
    ]
    assert lines[4].startswith("line 3: the image in column lobes is not on the CT's grid: got origin")
    assert lines[5:] == ["line 4: case b is also on line 3, for train instead of test"]
    write(data, "b,ct.mha,lobes.mha,0,0,3,0,0,,,tset")
    split = "line 2: split: got 'tset', expected one of train, validation, test"
    assert refusal(data).split("\n  ") == ["2 problems", "no case with split train", split]


def test_of_many_problems_twenty_are_shown():
    lines = str(all_problems("here", [f"problem {k}" for k in range(23)])).splitlines()
    assert lines == ["here: 23 problems", *(f"  problem {k}" for k in range(20)), "  and 3 more"]
    assert str(all_problems("here", ["one problem"])) == "here: one problem"


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/b", "a\\b", ".a", "a.", "-a", "a\nb", "ä", "\u212a", "done.json", "a.TMP", "a" * 101]
)
def test_names_that_cannot_name_files(data, name):
    write(data, f'"{name}",ct.mha,lobes.mha,0,1,2,3,5,,,train')
    assert "case: got '" in refusal(data)


@pytest.mark.parametrize("name", ["1.2.840.113.7", "p 1", "A_b-C+2", "_", "a" * 100])
def test_names_that_can(data, name):
    write(data, f"{name},ct.mha,lobes.mha,0,1,2,3,5,,,train")
    assert read_cases(data)[0].name == name


def test_a_scan_may_be_used_twice_for_one_split_but_not_under_another_path_for_two(data):
    (data / "link.mha").symlink_to(data / "ct.mha")
    rows = ["a,ct.mha,lobes.mha,0,1,2,3,5,,,train", "b,link.mha,lobes.mha,0,1,2,3,5,,,{}"]
    write(data, rows[0], rows[1].format("train"))
    assert len(read_cases(data)) == 2
    write(data, rows[0], rows[1].format("test"))
    assert refusal(data) == "line 3: ct link.mha is for test, but on line 2 it is for train"


def test_images_are_checked_by_their_headers(data):
    write_image(data / "shifted.mha", LOBES, SHIFTED)
    write_image(data / "flat.mha", LOBES[:1])
    (data / "text.mha").write_text("no image")
    (data / "broken.nii.gz").write_text("no image")
    (data / "folder").mkdir()
    write(
        data,
        "a,ct.mha,shifted.mha,0,1,2,3,5,shifted.mha,shifted.mha,train",
        "b,text.mha,broken.nii.gz,0,1,2,3,5,folder,cases.csv,train",
        "c,flat.mha,lobes.mha,0,1,2,3,5,,,train",
    )
    lines = refusal(data).split("\n  ")
    expected = [
        *(f"line 2: the image in column {name} is not on the CT's grid: got origin" for name in ("lobes", "lesions")),
        "line 2: the image in column vessels is not on the CT's grid: got origin in mm (-10, 5, 32), expected (-10, 5",
        f"line 3: ct: {data}/text.mha: damaged or no MetaImage file",
        f"line 3: lobes: {data}/broken.nii.gz: cannot be read as .nii.gz (",
        f"line 3: lesions: {data}/folder: got a folder, expected an image file (.mha, .mhd, .nii, .nii.gz, .nrrd)",
        f"line 3: vessels: {data}/cases.csv: unsupported format, expected .mha, .mhd, .nii, .nii.gz, .nrrd",
        f"line 4: ct: {data}/flat.mha: got size (x, y, z) (6, 5, 1), expected a scan of at least two slices",
    ]
    assert len(lines) == 1 + len(expected)
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith(start)


def test_a_dicom_folder_is_taken_as_ct(data):
    (data / "series").mkdir()
    write(data, "a,series,lobes.mha,0,1,2,3,5,,,train")
    assert refusal(data) == f"line 2: ct: {data}/series: got a folder without files, expected one DICOM series"
    (data / "series" / "1.dcm").touch()
    assert read_cases(data)[0].ct == data / "series"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no case with split train"),
        (["a,ct.mha,lobes.mha,0,1,2,3,4,,,test"], "no case with split train"),
        (["a,ct.mha,lobes.mha,0,0,0,0,0,,,train"], "no training case with a lesion: every score is 0"),
        (["a,ct.mha,lobes.mha,,,,,,,,train"], "no lobe of a training case has a score"),
    ],
)
def test_tables_that_cannot_be_trained_on(data, rows, message):
    write(data, *rows)
    assert refusal(data) == message


@pytest.mark.parametrize(
    "content, message",
    [
        (b"case,ct\na,b\n", "columns missing: lobes, lul"),
        (b"", "columns missing: case, ct"),
        (HEADER.replace(",", ";").encode(), "its columns are separated by semicolons, expected commas; save it"),
        (HEADER.replace(",", "\t").encode(), "its columns are separated by tabs, expected commas"),
        (b"ct," + HEADER.encode(), "got the columns ct more than once"),
        (HEADER.encode("utf-16"), "expected UTF-8; save the table as CSV in UTF-8"),
        (HEADER.encode() + b'"a,ct.mha\n', "line 2: got unexpected end of data, expected comma-separated values"),
    ],
)
def test_tables_that_cannot_be_read(data, content, message):
    (data / "cases.csv").write_bytes(content)
    assert message in refusal(data)


def test_missing_table(tmp_path):
    with pytest.raises(InputError, match=r"cases\.csv: no such file; expected the table of cases"):
        read_cases(tmp_path)


def case_of(data, *, lobes="lobes.mha", **references):
    paths = {name: data / references[name] if name in references else None for name in ("lesions", "vessels")}
    return Case("a", data / "ct.mha", data / lobes, dict.fromkeys(range(1, 6), 1), **paths, split="train")


def test_a_scan_has_small_types_and_keeps_lesions_of_unknown_subtype(data):
    write_image(data / "lesions.mha", np.where(LOBES == 2, 4, LOBES % 4).astype(np.float32))
    write_image(data / "vessels.mha", (LOBES * 50).astype(np.int32))
    scan = read_scan(case_of(data, lesions="lesions.mha", vessels="vessels.mha"))
    types = [volume.array.dtype for volume in (scan.ct, scan.lobes, scan.lesions, scan.vessels)]
    assert types == [np.int16, np.uint8, np.uint8, np.uint8]
    assert scan.lesions.array[0, 0].tolist() == [0, 1, 4, 3, 0, 1]
    assert scan.vessels.array[0, 0].tolist() == [0, 1, 1, 1, 1, 1]


def test_scans_that_are_refused_when_read(data):
    write_image(data / "lesions.mha", LOBES)
    with pytest.raises(
        InputError, match=r"lesions\.mha: got lesion labels \[0, 1, 2, 3, 4, 5\], expected 0 and \{1: '"
    ):
        read_scan(case_of(data, lesions="lesions.mha"))
    write_image(data / "shifted.mha", LOBES, SHIFTED)
    with pytest.raises(InputError, match=r"the vessel mask shifted\.mha is not on the CT's grid"):
        read_scan(case_of(data, vessels="shifted.mha"))
    with pytest.raises(InputError, match="case a: the lobe mask is not on the CT's grid"):
        read_scan(case_of(data, lobes="shifted.mha"))
    write_image(data / "four.mha", np.where(LOBES == 5, 0, LOBES).astype(np.uint8))
    with pytest.raises(InputError, match=r"case a: right middle lobe has a score but no voxel in four\.mha"):
        read_scan(case_of(data, lobes="four.mha"))
