import pytest

from algorithm.errors import InputError
from training.config import load_config, preset_names
from training.settings import Ramp, TrainingConfig


@pytest.fixture
def settings(tmp_path):
    """The settings of a file of that content."""

    def load(content):
        path = tmp_path / "c.toml"
        path.write_text(content)
        return load_config(path)

    return load


@pytest.fixture
def refused(settings):
    def load(content, message):
        with pytest.raises(InputError, match=r"settings .*c\.toml: " + message):
            settings(content)

    return load


def test_presets_load():
    assert {"cpu", "paper", "smoke"} <= set(preset_names())
    for name in preset_names():
        load_config(name)
    paper = load_config("paper")
    assert paper.regress.width == paper.segment.width == 32
    assert (paper.regress.chunk_size, paper.segment.crop_size, paper.segment.batch) == (80, 132, 2)
    assert (paper.prepare.chunk_spacing_mm, paper.prepare.scan_spacing_mm, paper.segment.beta) == (1.2, 1.5, 0.8)


@pytest.mark.parametrize("name", preset_names())
def test_the_baseline_learns_as_long_as_the_dram(name):
    config = load_config(name)
    same = ("width", "chunk_size", "batch", "steps")
    assert [getattr(config.cam, key) for key in same] == [getattr(config.regress, key) for key in same]


def test_an_empty_file_is_the_defaults(settings):
    assert settings("") == TrainingConfig()


def test_a_file_changes_single_keys_of_its_preset(settings):
    preset, mine = load_config("cpu"), settings('preset = "cpu"\n[regress]\nsteps = 7\n[regress.crf]\niterations = 1\n')
    crf = preset.regress.crf.model_copy(update={"iterations": 1})
    assert mine.regress == preset.regress.model_copy(update={"steps": 7, "crf": crf})
    assert mine.model_copy(update={"regress": preset.regress}) == preset != TrainingConfig()
    assert settings('preset = "cpu"') == preset


def test_a_key_of_a_table_leaves_the_other_defaults_of_that_table(settings):
    assert settings("[regress.entropy]\nweight = 0.1\n").regress.entropy == Ramp(weight=0.1, start=0.3, full=0.6)


def test_a_list_replaces_the_whole_list(settings):
    assert settings("[pseudo]\nscales = [1.0]\n").pseudo.scales == (1.0,)
    assert settings("[regress]\nscale_range = [1, 2]\n").regress.scale_range == (1.0, 2.0)


def test_unknown_key_names_the_nearest(refused):
    refused("[regress]\nwidht = 8\n", r"regress\.widht: unknown key, did you mean width\?$")
    refused("[regres]\nwidth = 8\n", r"regres: unknown key, did you mean regress\?$")
    refused("[regress.crf]\niteratons = 8\n", r"regress\.crf\.iteratons: unknown key, did you mean iterations\?$")
    refused("[regress.entropy]\nweight = 0\nbegin = 0.1\n", r"regress\.entropy\.begin: unknown key, expected one of we")
    refused('preset = "cpuu"', r"preset: unknown 'cpuu', did you mean cpu\?$")
    refused("preset = 3", "preset: unknown 3, expected one of cpu")


def test_all_problems_are_told(refused):
    refused("[regress]\nwidht = 8\nsteps = 0\n", r"regress\.steps: .*got 0; regress\.widht: unknown key")


@pytest.mark.parametrize(
    "content, message",
    [
        ("[regress]\nwidth = '8'\n", r"regress\.width: Input should be a valid integer, got '8'"),
        ("[regress]\nwidth = true\n", r"regress\.width: Input should be a valid integer, got True"),
        ("[regress]\nwidth = 1979-05-27\n", r"regress\.width: Input should be a valid integer, got '1979-05-27'"),
        ("[regress]\nnorm = 'group'\n", r"regress\.norm: Input should be 'batch' or 'instance', got 'group'"),
        ("regress = 3\n", r"regress: got 3, expected a table \[regress\]"),
        ("[regress]\ncrf = []\n", r"regress\.crf: got \[\], expected a table \[regress\.crf\]"),
    ],
)
def test_values_of_another_type(refused, content, message):
    refused(content, message)


def test_value_out_of_range(refused):
    refused("[regress]\nchunk_size = 50\n", r"regress\.chunk_size: .*multiple of 8, got 50")
    refused("[segment]\ncrop_size = 130\n", r"segment\.crop_size: expected 4 more than a multiple of 8, got 130")
    refused("[regress]\nscale_range = [2.0, 1.0]\n", r"regress: scale_range: got 2\.0 and 1\.0, expected two pos")
    refused(
        "[regress]\nchunk_size = 16\nscale_range = [1.1, 1.2]\n", r"regress: scale_range: no multiple of 8 .* of 16"
    )
    refused(
        "[cam]\nspacing_jitter_mm = 1.2\n", r"cam\.spacing_jitter_mm 1\.2: expected less than prepare\.chunk_spacing"
    )
    few = "voxels are too few in bf16-mixed: expected 24 or more, or precision 32-true"
    refused("[regress]\nchunk_size = 16\n", rf"regress: 16 {few}")
    refused("[regress]\nchunk_size = 32\nscale_range = [0.5, 1.0]\n", rf"regress: 16 {few}")
    refused("[vessels]\npatch_size = 16\n", rf"vessels: 16 {few}")
    refused("[cam]\nchunk_size = 16\n", rf"cam: 16 {few}")
    refused("[lobes]\ncrop_size_zyx = [32, 32, 32]\n", rf"lobes: 16 {few}")
    refused(
        "[lobes]\ncrop_size_zyx = [40, 32, 32]\n", r"lobes: crop_size_zyx: got \(40, 32, 32\), expected multiples of 16"
    )
    refused(
        "[lobes]\nscale_range = [1.2, 0.8]\n", r"lobes: scale_range: got 1\.2 and 0\.8, expected the smaller one first"
    )
    refused("[lobes]\nwindow_hu = [0, 0]\n", r"lobes: window_hu: got 0 and 0, expected the smaller one first")
    refused("[pseudo]\nscales = [1.0, -1.0]\n", r"pseudo\.scales\.1: .*greater than 0, got -1\.0")
    refused("[regress.entropy]\nstart = 0.5\nfull = 0.4\n", r"regress\.entropy: full 0\.4 is before start 0\.5")


def test_not_toml_names_the_line(refused):
    refused("seed = 1\nwidth = = 3", r"got Invalid value \(at line 2, column 9\), expected TOML")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: no such file; expected a TOML file or one of \['cpu'"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(InputError, match="expected TOML"):
        load_config(tmp_path)


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().seed = 3
