import importlib.util
import sys

import numpy as np
import pytest
import torch

from algorithm.engine import choose_device, make_network
from algorithm.errors import InputError
from algorithm.model import find_model, load_model
from algorithm.network import UNet3D
from algorithm.tiling import predict_scan

CPU = torch.device("cpu")


@pytest.fixture
def trained() -> UNet3D:
    return UNet3D(out_channels=3, width=1, padding="valid").eval()


def test_devices():
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="got cuda, but PyTorch sees no usable GPU here; use --device cpu or auto"):
            choose_device("cuda")
        assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU


def test_features_take_the_precision_and_the_last_layer_keeps_float32(trained):
    network = make_network(trained, device=CPU, precision="bf16")
    assert {p.dtype for p in network.down.parameters()} == {torch.bfloat16} and network.value_bytes == 2
    assert {p.dtype for p in network.last.parameters()} == {torch.float32}
    assert make_network(trained, device=CPU).value_bytes == 4


def test_unknown_names_are_refused(trained):
    with pytest.raises(InputError, match="precision: got 'fp16', expected fp32 or bf16"):
        make_network(trained, device=CPU, precision="fp16")
    with pytest.raises(InputError, match="engine: got 'onnx', expected auto, torch or openvino"):
        make_network(trained, device=CPU, engine="onnx")


def test_openvino_that_is_not_installed(trained, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="openvino, which is not installed; pip install openvino, or use --engine"):
        make_network(trained, device=CPU, engine="openvino")


def test_openvino_computes_on_the_cpu_only(trained, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="got openvino on cuda, which computes on the CPU; add --device cpu"):
        make_network(trained, device=torch.device("cuda"), engine="openvino")


def test_auto_does_without_openvino(trained):
    make_network(trained, device=CPU, precision="fp32", engine="auto")
    assert "openvino" not in sys.modules


def test_openvino_gives_what_torch_gives():
    pytest.importorskip("openvino")
    trained = load_model(find_model()).network
    image = np.random.default_rng(0).random((20, 24, 28), dtype=np.float32)
    inside = np.ones(image.shape, dtype=bool)
    results = [
        predict_scan(
            make_network(trained, device=CPU, engine=engine), image, inside, lambda logits: logits[2], memory_bytes=1e9
        )
        for engine in ("torch", "openvino")
    ]
    assert results[0].std() > 0.1
    np.testing.assert_allclose(results[1], results[0], atol=1e-3)
