"""Model folders: complete, checked, equal to the run, silent about the machine, and never half written."""

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

import stcl
from closeness import NETWORK, assert_close
from stcl.cli import main
from stcl.commands.export import run as exporting
from stcl.errors import CheckpointError, SettingError
from stcl.models import save_weights
from stcl.ops.losses import upsample
from stcl.training.evaluate import evaluate
from stcl.training.model_folder import digest, open_model_folder, read_about
from stcl.training.networks import build_network
from stcl.types import FramePair

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run of this module's own, whose fusion really fuses."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(trained, folder)
    network = stcl.load_model(folder)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.fusion.conv.weight)
    save_weights(network, folder / "model.safetensors")
    evaluate(folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's network as a model folder."""
    out = tmp_path_factory.mktemp("models") / "network"
    stcl.export(run, out, license="cc-by-4.0", quiet=True)
    return out


@pytest.fixture(scope="module")
def graphs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's network as ONNX graphs, in a folder whose parents are not there yet."""
    out = tmp_path_factory.mktemp("models") / "deep" / "graphs"
    assert main(["export", str(run), "--format", "onnx", "--out", str(out), "--quiet"]) == 0
    return out


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_the_network_comes_back_bit_for_bit(run, folder):
    assert files(folder) == {"model.safetensors", "model.json", "README.md"}
    wanted = stcl.load_model(run).state_dict()
    for place in (folder, folder / "model.safetensors"):
        network = stcl.load_model(place)
        assert not network.training
        assert_close(dict(network.state_dict()), dict(wanted), 0.0)
    assert stcl.load_model(folder).fusion is not None


def test_the_folder_says_what_it_is(run, folder, graphs):
    about, results = read_about(folder), json.loads((run / "results.json").read_text())
    assert about["classes"] == results["protocol"]["classes"] and about["protocol"] == results["protocol"]
    assert about["palette"][about["classes"].index("road")] == [128, 64, 128]
    assert about["results"]["miou"] == pytest.approx(results["miou"]) and about["results"]["frames"] == 2
    assert about["training"]["code"] == json.loads((run / "run.json").read_text())["code"]
    assert about["input"]["size"] == [64, 32] and about["output"]["stride"] == 4
    for place in (folder, graphs):
        entries = read_about(place)["files"]
        assert {*entries, "model.json", "README.md"} == files(place)
        for name, entry in entries.items():
            assert entry == {"bytes": (place / name).stat().st_size, "sha256": digest(place / name)}
            assert entry["sha256"] in (place / "README.md").read_text()


def test_nothing_names_a_place_on_this_machine(run, folder, graphs, streets, tmp_path):
    pt2 = tmp_path / "pt2"
    stcl.export(run, pt2, format="torch-export", quiet=True)
    package = Path(stcl.__file__).parent
    for place in (folder, graphs, pt2):
        for name in files(place):
            content = (place / name).read_bytes()
            for private in (run.parent, streets, package, Path.home() / "x"):
                assert str(private).encode() not in content, f"{name} names {private}"
            assert not re.search(rb"\w+\.py\b", content), name


def test_graphs_are_what_model_json_says(graphs):
    about = read_about(graphs)
    for graph in about["graphs"].values():
        session = onnxruntime.InferenceSession(graphs / graph["file"])
        for ports, declared in ((session.get_inputs(), "inputs"), (session.get_outputs(), "outputs")):
            found = [(port.name, port.type, port.shape) for port in ports]
            assert found == [(port["name"], "tensor(float)", port["shape"]) for port in graph[declared]]
    assert about["parity"]["real_frames"] == 2 and about["parity"]["random_frames"] == 1
    assert 0 <= about["parity"]["difference"] < NETWORK


def test_the_example_of_the_documents_labels_a_video(run, graphs, streets, tmp_path, monkeypatch):
    (text,) = re.findall(r"```python\n(import json\n.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    video = sorted((streets / "target" / "leftImg8bit_sequence" / "train").rglob("*.png"))[:4]
    (tmp_path / "frames").mkdir()
    for path in video:
        shutil.copy(path, tmp_path / "frames")
    shutil.copytree(graphs, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "docs/export.md", "exec"), {})  # as a reader would
    network, palette = stcl.load_model(run), np.array(read_about(graphs)["palette"])
    images = [cv2.imread(str(path)) for path in video]
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images]
    tensors = [torch.from_numpy(image[..., ::-1].transpose(2, 0, 1) / np.float32(255))[None] for image in images]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for index, path in enumerate(video):
        pair = FramePair(tensors[index])
        if index:
            moved = flow.calc(greys[index], greys[index - 1], None).transpose(2, 0, 1)
            pair = FramePair(tensors[index], tensors[index - 1], torch.from_numpy(moved.copy())[None])
        with torch.no_grad():
            wanted = palette[upsample(network(pair).logits, (32, 64)).argmax(1)[0]]
        labelled = cv2.imread(str(tmp_path / "labels" / path.name))[..., ::-1]
        assert (labelled == wanted).all(-1).mean() > 0.9  # the example up-samples about the centres of pixels


# ---- what keeps a folder from being written ----


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["export", *map(str, words), "--quiet"]) == 2
    return capsys.readouterr().err


def test_graphs_that_differ_leave_nothing_behind(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stcl.commands.export.graph.LARGEST_DIFFERENCE", -1.0)
    message = refused(capsys, run, "--format", "torch-export", "--out", tmp_path / "deep" / "out")
    assert "do not compute what the network does" in message and "Nothing was written" in message
    assert files(tmp_path) == set()


def test_a_full_disk_leaves_nothing_behind(run, folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path / "out")
    before = (tmp_path / "out" / "model.json").read_bytes()

    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(exporting, "write_atomic", full)
    for name in ("safetensors", "torch-export"):
        message = refused(capsys, run, "--format", name, "--out", tmp_path / "out", "--force")
        assert "No space left on device. Check the path, its permissions and the room on the disk." in message
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
        assert (tmp_path / "out" / "model.json").read_bytes() == before


def test_existing_folders(run, folder, tmp_path, capsys):
    words = [run, "--format", "safetensors", "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()  # an empty one holds nothing to lose
    assert main([*map(str, ["export", *words]), "--quiet"]) == 0
    assert "holds a model. Choose another folder, or replace it with --force" in refused(capsys, *words)
    assert main([*map(str, ["export", *words]), "--force", "--license", "mit", "--quiet"]) == 0
    assert read_about(tmp_path / "out")["license"] == "mit"
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    message = refused(capsys, *words, "--force")
    assert "out holds more than a model, which --force would remove: thesis.tex. Move that away" in message
    assert "thesis.tex" in files(tmp_path / "out") and read_about(tmp_path / "out")["license"] == "mit"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    message = refused(capsys, run, "--format", "safetensors", "--out", tmp_path / "own", "--force")
    assert "own exists and is no model folder: it stays as it is." in message
    assert files(tmp_path / "own") == {"thesis.tex"}
    message = refused(capsys, run, "--format", "safetensors", "--out", tmp_path / "own" / "thesis.tex" / "out")
    assert "thesis.tex: File exists. Check the path" in message


@pytest.mark.parametrize("way", ["at once", "since"])
def test_of_two_exports_into_one_folder_the_second_is_told(run, tmp_path, monkeypatch, capsys, way):
    words, write = [run, "--format", "safetensors", "--out", tmp_path / "out", "--quiet"], exporting.save_trained
    whole = shutil.copytree(run, tmp_path / "whole")

    def meanwhile(*rest):
        write(*rest)
        if way == "since":  # from a machine that does not see the lock
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.tex").write_text("years of work")
        else:
            assert "Another process is writing the model" in refused(capsys, *words)

    monkeypatch.setattr(exporting, "save_trained", meanwhile)
    status = main([*map(str, ["export", *words])])
    model = {"model.json", "README.md", "model.safetensors"}
    assert files(tmp_path / "out") == ({"thesis.tex"} if way == "since" else model)
    assert status == (2 if way == "since" else 0) and {path.name for path in tmp_path.iterdir()} == {"out", whole.name}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "onxx"), "Unknown format 'onxx'. Did you mean 'onnx'? Known: safetensors, onnx, torch-export."),
        (
            ("--format", "onnx", "--size", "60x32"),
            "--size is [60, 32], but width and height must be at least 32 and divis",
        ),
        (("--format", "onnx", "--size", "24x16"), "The nearest such size is [32, 32]."),
        (("--format", "safetensors", "--dynamic"), "takes frames of any size anyway"),
        (("--format", "safetensors", "--license", "ask me"), "--license is an identifier such as cc-by-4.0"),
    ],
)
def test_wrong_options(run, tmp_path, capsys, words, message):
    assert message in refused(capsys, run, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_size_that_is_none(run, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(run), "--format", "onnx", "--out", "out", "--size", "512"])
    assert "expected WIDTHxHEIGHT in pixels, such as 640x480, found '512'" in capsys.readouterr().err


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_wrong_runs(copy, tmp_path, capsys):
    words = ["--format", "safetensors", "--out", tmp_path / "out"]
    (copy / "model.safetensors").write_bytes(b"\x08")
    assert "is not a whole safetensors file (1 bytes" in refused(capsys, copy, *words)
    (copy / "model.safetensors").unlink()
    assert "holds no model.safetensors: its training was interrupted or is still running" in refused(
        capsys, copy, *words
    )
    assert "is no run folder: it holds no config.yaml" in refused(capsys, tmp_path, *words)
    assert files(tmp_path) - {"copy"} == {name for name in files(tmp_path) if name.startswith("copy/")}


def test_a_run_without_size_and_without_its_data(copy, tmp_path, capsys):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["target"] |= {"size": None, "root": str(tmp_path / "moved")}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "results.json").unlink()
    words = ["--format", "torch-export", "--out", tmp_path / "out"]
    assert "say which graphs are for, --size WxH" in refused(capsys, copy, *words)
    about = stcl.export(copy, tmp_path / "out", "torch-export", (96, 40), quiet=True)
    assert about["input"]["size"] == [96, 40] and about["results"] is None
    assert about["parity"]["real_frames"] == 0
    scores = torch.export.load(tmp_path / "out" / "frame.pt2").module()(torch.rand(1, 3, 40, 96))
    assert scores.shape == (1, 12, 10, 24)


# ---- folders that are opened ----


def rewrite(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, **changes}))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "model.safetensors is damaged: its sha256 is not the one in model.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors, which model.json lists"),
        (lambda folder: (folder / "setup.py").touch(), "holds files that a model of stcl does not have: setup.py"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
        (lambda folder: (folder / "model.json").write_text("[]"), "has schema 'list'"),
        (lambda folder: rewrite(folder, schema=2), "has schema 2; this version of stcl reads schema 1"),
        (lambda folder: rewrite(folder, classes=None), "'classes' is missing or no list"),
        (lambda folder: rewrite(folder, format="pickle"), "Unknown format in"),
        (lambda folder: rewrite(folder, files={"../model.pkl": {"sha256": ""}}), "Do not open it."),
        (lambda folder: rewrite(folder, network={"backbone": "smal"}), "Did you mean 'small'"),
        (lambda folder: rewrite(folder, network={"depth": 3}), "cannot be built"),
        (lambda folder: rewrite(folder, network={"backbone": "small"}), "belongs to another network"),
        (lambda folder: rewrite(folder, classes=["road"]), "belongs to another network"),
    ],
)
def test_damaged_folders(folder, tmp_path, damage, message):
    place = Path(shutil.copytree(folder, tmp_path / "model"))
    damage(place)
    with pytest.raises((CheckpointError, SettingError), match=re.escape(message)):
        stcl.load_model(place)


def test_graphs_and_other_folders_are_no_network(graphs, tmp_path):
    with pytest.raises(SettingError, match=r"holds graphs \(onnx\), which run without stcl"):
        stcl.load_model(graphs)
    with pytest.raises(SettingError, match=r"is no model folder: it holds no model\.json"):
        open_model_folder(tmp_path)


def test_without_fusion_there_is_no_fusion_graph(copy, make_settings, tmp_path):
    settings = make_settings("source_only", network={"fusion": "none"})
    (copy / "config.yaml").write_text(settings.dump())
    save_weights(build_network(settings), copy / "model.safetensors")
    about = stcl.export(copy, tmp_path / "out", "torch-export", dynamic=True, quiet=True)
    assert files(tmp_path / "out") == {"frame.pt2", "model.json", "README.md"}
    assert about["graphs"]["frame"]["inputs"][0]["shape"] == [None, 3, None, None]
    assert "segments each frame by itself" in (tmp_path / "out" / "README.md").read_text()
