import pytest

from algorithm.errors import InputError
from training.config import TrainingConfig, load_config, preset_names


def test_presets_load():
    assert set(preset_names()) == {"cpu", "paper", "smoke"}
    for name in preset_names():
        load_config(name)
    paper = load_config("paper")
    assert paper.regress.width == paper.segment.width == 32
    assert (paper.regress.chunk_size, paper.segment.crop_size, paper.segment.batch) == (80, 132, 2)
    assert (paper.prepare.chunk_spacing_mm, paper.prepare.scan_spacing_mm, paper.segment.beta) == (1.2, 1.5, 0.8)


def refused(tmp_path, content, message):
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_unknown_key_names_the_nearest(tmp_path):
    refused(tmp_path, "[regress]\nwidht = 8\n", r"regress\.widht: unknown key, did you mean width\?")
    refused(tmp_path, "[regres]\nwidth = 8\n", r"regres: unknown key, did you mean regress\?")


def test_value_out_of_range(tmp_path):
    refused(tmp_path, "[regress]\nchunk_size = 50\n", r"regress\.chunk_size: .*multiple of 8, got 50")
    refused(tmp_path, "[segment]\ncrop_size = 130\n", r"crop_size: .*4 more than a multiple of 8, got 130")
    refused(
        tmp_path,
        "[regress]\nentropy_start = 0.5\nentropy_full = 0.4\n",
        r"entropy_full 0\.4 is before entropy_start 0\.5",
    )


def test_not_toml_and_no_file(tmp_path):
    refused(tmp_path, "= 3", "expected TOML")
    with pytest.raises(InputError, match="no such file; expected a TOML file or one of"):
        load_config(tmp_path / "none.toml")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().seed = 3
