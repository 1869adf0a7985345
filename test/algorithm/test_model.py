import json

import pytest
import torch
from safetensors.torch import save_file

from algorithm import model as model_module
from algorithm.errors import InputError
from algorithm.model import find_model, load_model, sha256
from algorithm.network import UNet3D


def change(directory, **values):
    path = directory / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sound_directory_loads(model_directory):
    model = load_model(model_directory)
    assert model.description.name == "tiny"
    assert not model.network.training
    assert len(model.reference.subtype) == 4


def test_missing_directory(tmp_path):
    with pytest.raises(InputError, match=r"got no model.json, expected what `python -m training export` writes"):
        load_model(tmp_path / "none")


def test_wrong_schema_version(model_directory):
    change(model_directory, schema_version=2)
    with pytest.raises(InputError, match=r"schema_version: .*expected schema version 1"):
        load_model(model_directory)


def test_unknown_key(model_directory):
    change(model_directory, widht=8)
    with pytest.raises(InputError, match="widht: Extra inputs"):
        load_model(model_directory)


def test_other_conventions(model_directory):
    change(model_directory, lobes={"lul": 1, "lll": 2, "rul": 3, "rll": 5, "rml": 4})
    with pytest.raises(InputError, match="lobes: got .*the model follows other conventions"):
        load_model(model_directory)


def test_tampered_weights(model_directory):
    path = model_directory / "lesion.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"got SHA-256 .* the file was changed or damaged"):
        load_model(model_directory)


def test_missing_weights(model_directory):
    (model_directory / "lesion.safetensors").unlink()
    with pytest.raises(InputError, match=r"lesion.safetensors: missing, though model.json lists it"):
        load_model(model_directory)


def test_weights_of_another_architecture(model_directory):
    path = model_directory / "lesion.safetensors"
    save_file(UNet3D(out_channels=3, width=2).state_dict(), path)
    files = json.loads((model_directory / "model.json").read_text())["files"]
    change(model_directory, files=files | {path.name: sha256(path.read_bytes())})
    with pytest.raises(InputError, match="weights and model.json do not belong together"):
        load_model(model_directory)


def test_pickled_weights_are_never_read(model_directory):
    path = model_directory / "lesion.safetensors"
    torch.save(UNet3D(out_channels=3, width=1).state_dict(), path)
    files = json.loads((model_directory / "model.json").read_text())["files"]
    change(model_directory, files=files | {path.name: sha256(path.read_bytes())})
    with pytest.raises(InputError, match="expected safetensors"):
        load_model(model_directory)


def test_unlisted_file(model_directory):
    change(model_directory, files={})
    with pytest.raises(InputError, match="no checksum for lesion.safetensors"):
        load_model(model_directory)


def test_order_of_model_directories(tmp_path, monkeypatch):
    platform, packaged = tmp_path / "platform", tmp_path / "packaged"
    monkeypatch.setattr(model_module, "PLATFORM_DIRECTORY", platform)
    monkeypatch.setattr(model_module, "PACKAGED_DIRECTORY", packaged)
    with pytest.raises(InputError, match="no model: got none"):
        find_model()
    packaged.mkdir()
    assert find_model() == packaged
    platform.mkdir()
    assert find_model() == packaged  # an empty mount is no model
    (platform / "model.json").touch()
    assert find_model() == platform
    assert find_model(tmp_path) == tmp_path
