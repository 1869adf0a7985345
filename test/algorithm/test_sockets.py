from __future__ import annotations

import json
import shutil

import pytest

from algorithm.errors import InputError
from algorithm.sockets import INPUTS, INTERFACES, LESIONS, SEVERITY, read_inputs


def write(input_dir, values):
    (input_dir / "inputs.json").write_text(json.dumps(values))


def test_table():
    assert {frozenset({"ct-image", "pulmonary-lobes"}), frozenset({"ct-image"})} == set(INTERFACES)
    assert all(socket.relative_path.startswith("images/") for socket in (*INPUTS.values(), LESIONS))
    assert SEVERITY.relative_path.endswith(".json")


@pytest.mark.parametrize("key", ["socket", "interface"])
def test_both_interfaces_and_both_spellings(input_dir, socket_value, key):
    write(input_dir, [socket_value(slug, key=key) for slug in INPUTS])
    inputs = read_inputs(input_dir)
    assert inputs.name == "case01.mha"
    assert inputs.ct == input_dir / "images/ct/0b1f9cf4.mha"
    assert inputs.lobes == input_dir / "images/pulmonary-lobes/7c3f2a10.mha"
    write(input_dir, [socket_value("ct-image", key=key)])
    assert read_inputs(input_dir).lobes is None


def test_null_socket_falls_back_to_interface(input_dir, socket_value):
    write(input_dir, [{**socket_value("ct-image", key="interface"), "socket": None}])
    assert read_inputs(input_dir).ct.name == "0b1f9cf4.mha"


def test_the_platforms_path_wins(input_dir, socket_value):
    (input_dir / "images/ct").rename(input_dir / "images/chest-ct")
    write(input_dir, [socket_value("ct-image", "images/chest-ct")])
    assert read_inputs(input_dir).ct == input_dir / "images/chest-ct/0b1f9cf4.mha"


def test_name_without_image(input_dir, socket_value):
    write(input_dir, [{**socket_value("ct-image"), "image": None}])
    assert read_inputs(input_dir).name == "0b1f9cf4.mha"


def test_dicom_folder(input_dir, socket_value):
    for image in (input_dir / "images/ct").iterdir():
        image.unlink()
    for name in ("1.dcm", "2.DCM"):
        (input_dir / "images/ct" / name).touch()
    write(input_dir, [socket_value("ct-image")])
    assert read_inputs(input_dir).ct == input_dir / "images/ct"


@pytest.mark.parametrize(
    ("slugs", "message"),
    [
        ([], r"got the sockets none, expected \{ct-image, pulmonary-lobes\} or \{ct-image\}"),
        (["pulmonary-lobes"], "got the sockets pulmonary-lobes, expected"),
        (["ct-image", "chest-x-ray"], "got the sockets chest-x-ray, ct-image, expected"),
        (["ct-image", "ct-image"], "got the socket ct-image twice, expected"),
    ],
)
def test_unknown_interface(input_dir, socket_value, slugs, message):
    write(input_dir, [socket_value(slug) for slug in slugs])
    with pytest.raises(InputError, match=message):
        read_inputs(input_dir)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file: .*; expected the platform's list of inputs"),
        ("{", "the file: .*; expected the platform's list of inputs"),
        ("{}", "the file: .*; expected the platform's list of inputs"),
        ('[{"socket": {"title": "CT"}}]', r"0\.socket\.slug: Field required"),
        ('[{"value": 1}]', "0: names no socket"),
    ],
)
def test_invalid_inputs_json(input_dir, content, message):
    (input_dir / "inputs.json").write_text(content)
    with pytest.raises(InputError, match=f"inputs.json: {message}") as caught:
        read_inputs(input_dir)
    assert "\n" not in str(caught.value)


def test_no_inputs_json(tmp_path):
    with pytest.raises(InputError, match="inputs.json: missing"):
        read_inputs(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "ct-image: .*images/ct is empty, expected one image"),
        ((".hidden.mha",), "is empty, expected one image"),
        (("a.mha", "b.mha"), r"holds a\.mha, b\.mha, expected one image"),
        (("a.mha", "b.dcm"), r"holds a\.mha, b\.dcm, expected one image"),
        (tuple(f"{k}.mha" for k in range(7)), r"4\.mha and 2 more, expected one image"),
        (("a.tif",), r"holds a\.tif, expected one image .* TIFF is not supported"),
    ],
)
def test_not_one_image(input_dir, names, message):
    for image in (input_dir / "images/ct").iterdir():
        image.unlink()
    for name in names:
        (input_dir / "images/ct" / name).touch()
    with pytest.raises(InputError, match=message):
        read_inputs(input_dir)


def test_no_folder(input_dir):
    shutil.rmtree(input_dir / "images/pulmonary-lobes")
    with pytest.raises(InputError, match="pulmonary-lobes: .*images/pulmonary-lobes is missing"):
        read_inputs(input_dir)
