import pytest

from stcl import resources
from stcl.errors import SettingError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "lib" / "stcl")
    monkeypatch.setattr(resources, "_CHECKOUT", tmp_path / "lib")
    return tmp_path / "lib"


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("seed: 0\n", encoding="utf-8")
    return path


def test_a_wheel_carries_the_configurations(folder):
    packaged = write(folder / "stcl" / "configs" / "twinstreets" / "stcl.yaml")
    assert resources.list_configs() == ["twinstreets/stcl"]
    assert resources.config_path("twinstreets/stcl") == resources.config_path("twinstreets/stcl.yaml") == packaged


def test_a_checkout_has_them_beside_the_source(folder):
    own = write(folder / "configs" / "tps.yaml")
    assert resources.config_path("tps") == own


def test_a_file_of_your_own_is_taken_as_it_is(folder, tmp_path):
    own = write(tmp_path / "own.yaml")
    assert resources.config_path(own) == own
    weights = write(tmp_path / "own.safetensors")
    assert resources.weights_path(str(weights)) == weights


def test_an_unknown_name_lists_the_right_ones(folder):
    write(folder / "configs" / "tps.yaml")
    with pytest.raises(SettingError, match=r"Unknown configuration 'tsp'. Did you mean 'tps'\? Known: tps\."):
        resources.config_path("tsp")
    with pytest.raises(SettingError, match=r"none comes with this install.*\.safetensors file of your own"):
        resources.weights_path("start")


def test_weights_lie_in_the_package(folder):
    shipped = write(folder / "stcl" / "weights" / "start.safetensors")
    assert resources.weights_path("start") == shipped
    assert resources.list_weights() == ["start"]


def test_the_real_folder_exists():
    assert resources.config_folder().is_dir()
