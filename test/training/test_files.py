import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume, read_ct
from training.files import (
    explained_when_full,
    load_array,
    read_json,
    remove_stale,
    save_array,
    whole_folder,
    write_image,
    write_json,
    write_text,
    write_whole,
)

FULL = OSError(errno.ENOSPC, "No space left on device")
NO_SPACE = r"a\.\S+: no space left on the disk, or no quota; free space and run the same command again"

NOISE = np.random.default_rng(0).integers(-1000, 1000, (8, 64, 64)).astype(np.int16)  # 64 KB, compressed hardly less
IMAGE = Volume(NOISE, Geometry(NOISE.shape, (2.5, 0.7, 0.7), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)))


def onto_a_full_disk(write):
    """Let a file's bytes go to the device that is always full."""

    def redirected(file):
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), file.fileno())
        write(file)

    return redirected


def raises(error):
    raise error


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4)[:, ::2],
        np.zeros((0, 3), dtype=np.uint8),
    ],
    ids=["float16", "Fortran order", "strided", "empty"],
)
def test_an_array_comes_back_as_it_was(array, tmp_path):
    save_array(tmp_path / "a.npy", array)
    for mapped in (False, True):
        read = load_array(tmp_path / "a.npy", mapped=mapped)
        assert read.dtype == array.dtype and isinstance(read, np.memmap) == mapped
        np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        save_array(tmp_path / "a.npy", np.array([object()]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: b"PK" + whole[2:]])
def test_a_damaged_array_is_named_with_the_cure(damage, mapped, tmp_path):
    path = tmp_path / "a.npy"
    save_array(path, np.arange(1000))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"^{path}: damaged cache file .*; delete it and the done\.json of its stage"):
        load_array(path, mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_missing_array_is_named_with_the_cure(mapped, tmp_path):
    with pytest.raises(InputError, match=r"a\.npy: no such file; delete the done\.json of its stage, then run that"):
        load_array(tmp_path / "a.npy", mapped=mapped)


def test_json_comes_back_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"one": [1.5, None], "ü": {}})
    assert read_json(path) == {"one": [1.5, None], "ü": {}} == json.loads(path.read_bytes())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"one": float("nan")})
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(InputError, match=r"a\.json: damaged, no JSON .*delete it and the done\.json of its stage"):
        read_json(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    "write",
    [
        lambda file: (file.write(b"half"), raises(FULL)),
        lambda file: raises(OSError(errno.EDQUOT, "Disk quota exceeded")),
        onto_a_full_disk(lambda file: file.write(b"few bytes, which fail when they are flushed")),
        onto_a_full_disk(lambda file: file.write(bytes(1 << 20))),
        onto_a_full_disk(lambda file: torch.save({"weights": torch.zeros(1 << 16)}, file)),
    ],
    ids=["full", "quota", "few bytes", "many bytes", "torch"],
)
def test_a_full_disk_is_said_and_leaves_the_old_file(write, tmp_path):
    path = tmp_path / "a.npy"
    write_text(path, "old")
    with pytest.raises(InputError, match=NO_SPACE):
        write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_array_that_ends_in_the_middle_says_why(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_array(tmp_path / "a.npy", np.zeros(1 << 16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and list(tmp_path.iterdir()) == []


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(KeyError):
        write_whole(tmp_path / "a", lambda file: raises(KeyError("b")))
    with pytest.raises(PermissionError), explained_when_full(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(InputError, match="^first$"), explained_when_full(tmp_path):
        raise InputError("first") from FULL
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_behind_another_error_is_found(tmp_path):
    with pytest.raises(InputError, match="no space left"), explained_when_full(tmp_path):
        try:
            raise FULL
        except OSError as error:
            raise RuntimeError("cannot write") from error


@pytest.mark.parametrize("name", ["a.mha", "a.nii.gz"])
def test_an_image_comes_back_as_it_was(name, tmp_path):
    write_image(tmp_path / name, IMAGE)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    found = read_ct(tmp_path / name)
    np.testing.assert_array_equal(found.array, IMAGE.array)
    np.testing.assert_allclose(found.geometry.spacing_zyx_mm, (2.5, 0.7, 0.7), rtol=1e-6)


@pytest.mark.parametrize("name", ["a.mha", "a.nii.gz"])
def test_an_image_that_ends_in_the_middle_says_why_and_leaves_the_old_file(name, tmp_path):
    (tmp_path / name).write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_image(tmp_path / name, IMAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == [tmp_path / name] and (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("name", ["a.mha", "a.nii.gz"])
def test_an_image_on_a_full_disk_is_said(name, tmp_path, monkeypatch):
    write = sitk.WriteImage

    def half(image, path, **options):
        write(image, path, **options)
        os.truncate(path, os.stat(path).st_size // 2)
        if path.endswith(".mha"):  # NIfTI files fall short in silence
            raise RuntimeError("File cannot be written")

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(OSError, match=r"a\.\S+: cannot be written \("):
        write_image(tmp_path / name, IMAGE)
    monkeypatch.setattr(os, "fsync", lambda file: raises(FULL))
    with pytest.raises(InputError, match=NO_SPACE):
        write_image(tmp_path / name, IMAGE)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "cases" / "a.npy"
    with pytest.raises(InputError, match=NO_SPACE), whole_folder(path) as folder:
        write_text(folder / "b", "b")
        raise FULL
    assert list(path.parent.iterdir()) == []
    with whole_folder(path) as folder:
        write_text(folder / "b", "b")
        assert not path.exists()
    assert (path / "b").read_text() == "b" and list(path.parent.iterdir()) == [path]


def test_a_folder_that_another_process_finished_first_is_kept(tmp_path):
    path = tmp_path / "a"
    with whole_folder(path) as folder:
        write_text(folder / "mine", "")
        with whole_folder(path) as other:
            write_text(other / "theirs", "")
    assert [p.name for p in path.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in ("a.npy", "a.npy.1f.tmp", "case/b.npy", "case/b.npy.2e.tmp", "other.3d.tmp/c.npy.4c.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_stale(tmp_path, untouched_s=3600)
    assert len(list(tmp_path.rglob("*.tmp"))) == 4
    remove_stale(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["a.npy", "case", "case/b.npy"]


def test_a_worker_that_outlived_its_parent_cannot_finish_what_is_being_removed(tmp_path, monkeypatch):
    path, remove = tmp_path / "a", shutil.rmtree
    removed = []
    with pytest.raises(FileNotFoundError), whole_folder(path) as folder:
        write_text(folder / "first", "")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda part, **options: removed.append(part))
            remove_stale(tmp_path)
        assert [part.parent for part in removed] == [tmp_path] and not folder.exists()
        write_text(folder / "second", "")
    remove(removed[0])
    assert list(tmp_path.iterdir()) == []
