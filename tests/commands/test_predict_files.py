"""``stcl predict``: what it leaves, how it goes on after a kill, what it does not overwrite, what wrong input gets."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import stcl
from closeness import assert_close
from stcl.cli import main
from stcl.commands.arguments import launched_shard
from stcl.commands.predict import recording
from stcl.commands.predict.frames import PredictOptions
from stcl.commands.predict.recording import Outputs
from stcl.commands.predict.run import fingerprint, share_of
from stcl.data.io import read_label, write_image
from stcl.errors import DataError, SettingError
from stcl.files.names import neighbour
from stcl.labels import RAW_IDS
from stcl.models import save_weights
from stcl.training.networks import build_network, open_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What a finished training leaves, as far as the network goes; its target frames are 64x32."""
    small = ["--network.weights=null", "--network.backbone_settings={width: 4}", "--network.head_settings={width: 8}"]
    settings = stcl.load_settings("twinstreets/source_only", [*small, "--target.size=[64, 32]"])
    network = build_network(settings)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.fusion.conv.weight)
    path = tmp_path_factory.mktemp("runs") / "run"
    save_weights(network, path / "model.safetensors", {"config": settings.dump()})
    (path / "config.yaml").write_text(settings.dump())
    return path


@pytest.fixture
def predict(run, tmp_path, capsys) -> Run:
    """``predict(*words)``: exit status, output and errors of the command; results go to ``out``."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        fixed = ["--checkpoint", run, "--out", tmp_path / "out", "--device", "cpu", "--quiet"]
        try:
            status = main(["predict", *map(str, fixed), *map(str, words)])
        except SystemExit as stop:
            status = stop.code
        seen = capsys.readouterr()
        return status, seen.out, seen.err

    return call


@pytest.fixture
def street(tmp_path, moving_frames, write_video) -> Path:
    frames = [*moving_frames(7, (50, 75)), *moving_frames(5, (50, 75), seed=1)]
    return write_video(tmp_path / "street.mkv", frames, "ffv1", "bgr0", Fraction(30000, 1001))


def shares_in(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "shares.csv").open()))


def test_everything_that_can_be_kept(predict, street, tmp_path, read_video) -> None:
    status, said, wrong = predict(street, "--save", "overlay", "labels", "confidence", "shares", "--part-frames", 5)
    out = tmp_path / "out" / "street"
    assert (status, wrong) == (0, "") and f"{out}: 12 frames" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "confidence",
        "labels",
        "overlay.mp4",
        "prediction.json",
        "shares.csv",
    ]
    film = read_video(out / "overlay.mp4")
    assert [float(second) for second, _ in film] == pytest.approx([n * 1001 / 30000 for n in range(12)], abs=1e-3)
    with av.open(str(out / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 12)
        assert (stream.width, stream.height) == (76, 50)  # an odd side gains a column
        assert float(stream.average_rate) == pytest.approx(30000 / 1001, abs=0.01)
        assert float(stream.duration * stream.time_base) == pytest.approx(12 * 1001 / 30000, abs=2e-3)
    content = (out / "overlay.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    results = list(stcl.predict(street, *[*run_of(predict)]))
    header, *rows = shares_in(out)
    assert header[:4] == ["frame", "name", "time_s", "restarted"] and len(header) == 4 + 12 and len(rows) == 12
    for result, row in zip(results, rows, strict=True):
        assert np.array_equal(read_label(out / "labels" / f"{result.name}.png"), result.labels)
        grey = read_label(out / "confidence" / f"{result.name}.png")
        assert_close(grey / 255, result.confidence, 0.5 / 255 + 1e-6, scale=1)
        assert_close([float(cell) for cell in row[4:]], result.shares, 1e-6, scale=1)
    assert [row[0] for row in rows if row[3] == "1"] == ["0", "7"]
    record = json.loads((out / "prediction.json").read_text())
    assert (record["state"], record["frames"], record["restarts"]) == ("finished", 12, [0, 7])
    assert record["request"]["options"]["size"] == [64, 32]  # what the run was trained on


def run_of(predict: Run) -> list[Path]:
    """The run folder that the fixture gives the command."""
    return [cell.cell_contents for cell in predict.__closure__ if str(cell.cell_contents).endswith("/run")]


def test_colours_and_ids_of_label_maps(predict, street, tmp_path) -> None:
    assert predict(street, "--save", "labels", "--ids", "cityscapes", "--frames", 3)[0] == 0
    folder = tmp_path / "out" / "street" / "labels"
    assert len(list(folder.iterdir())) == 3
    ids = RAW_IDS["cityscapes_seq"]
    space = stcl.load_model(run_of(predict)[0]).space
    for result in list(stcl.predict(street, run_of(predict)[0]))[:3]:
        found = read_label(folder / f"{result.name}.png")
        for train_id in np.unique(result.labels):
            raw = {*found[result.labels == train_id].tolist()}
            assert [ids[value] for value in raw] == [space.names[train_id]]
        with Image.open(folder / f"{result.name}.png") as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture.convert("RGB")), space.palette[result.labels])


def test_shares_as_parquet(predict, street, tmp_path, monkeypatch) -> None:
    import pyarrow.parquet

    assert predict(street, "--save", "shares", "--shares", "parquet")[0] == 0
    table = pyarrow.parquet.read_table(tmp_path / "out" / "street" / "shares.parquet").to_pydict()
    assert table["frame"] == [*range(12)]
    assert sum(table[name][0] for name in [*table][4:]) == pytest.approx(1, abs=1e-4)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, wrong = predict(street, "--shares", "parquet", "--force")
    assert status == 2 and "pip install 'stcl[parquet]'" in wrong


def pictures_in(out: Path, read_video) -> dict[str, bytes]:
    """Everything of a result that must be equal, frame by frame."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}
    frames = {f"{number}": picture.tobytes() for number, (_, picture) in enumerate(read_video(out / "overlay.mp4"))}
    times = repr([second for second, _ in read_video(out / "overlay.mp4")]).encode()
    return {**files, **frames, "times": times, "shares": (out / "shares.csv").read_bytes()}


KILLED = """
import os, signal, sys
from stcl.cli import main
from stcl.commands.predict import recording
write = recording.write_palette
def dies(path, *rest):
    if path.stem == "000047":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, *rest)
recording.write_palette = dies
main(sys.argv[1:])
"""


def test_after_a_kill_it_goes_on_as_if_nothing_had_been(
    predict, run, tmp_path, moving_frames, write_video, read_video
) -> None:
    frames = [*moving_frames(50, (96, 128)), *moving_frames(70, (96, 128), seed=1)]
    street = write_video(tmp_path / "long.mp4", frames)
    options = ["--save", "overlay", "labels", "shares", "--part-frames", "20", "--quiet", "--device", "cpu"]
    fixed = ["--checkpoint", str(run), "--out", str(tmp_path / "killed")]
    command = ["predict", str(street), *options, *fixed]
    parts = tmp_path / "killed" / "long" / ".parts"
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(parts.glob("*.json"))) == 2 and not (parts.parent / "overlay.mp4").exists()
    begun = time.time_ns()
    assert main(command) == 0
    made = [path.stem for path in (parts.parent / "labels").iterdir() if path.stat().st_mtime_ns > begun]
    assert sorted(made) == [f"{number:06d}" for number in range(40, 120)]  # the rest alone
    assert predict(street, *options)[0] == 0
    assert pictures_in(tmp_path / "killed" / "long", read_video) == pictures_in(tmp_path / "out" / "long", read_video)
    assert not parts.exists()


def test_what_is_finished_is_never_done_again_nor_overwritten(predict, street, tmp_path) -> None:
    assert predict(street, "--save", "shares")[0] == 0
    table = tmp_path / "out" / "street" / "shares.csv"
    before = table.stat().st_mtime_ns
    status, said, _ = predict(street, "--save", "shares")
    assert status == 0 and "finished before" in said
    status, _, wrong = predict(street, "--save", "shares", "--flip")
    assert status == 2 and "another call (different: options.flip)" in wrong and "--force" in wrong
    assert table.stat().st_mtime_ns == before
    (table.parent / "own.txt").write_text("mine")
    assert predict(street, "--save", "labels", "--force")[0] == 0
    assert not table.exists() and (table.parent / "own.txt").exists()


CHANGES = {
    "options.size": ("--size", "96x64"),
    "options.flow": ("--flow", "none"),
    "options.cut": ("--cut", "0.5"),
    "options.flip": ("--flip",),
    "options.scales": ("--scales", "1", "0.5"),
    "options.tile": ("--tile", "64x64"),
    "options.confidence": ("--save", "shares", "confidence"),
    "outputs.save": ("--save", "labels"),
    "outputs.ids": ("--ids", "cityscapes"),
    "outputs.shares": ("--shares", "parquet"),
    "outputs.part_frames": ("--part-frames", "5"),
    "fps": ("--fps", "7"),
    "limit": ("--frames", "1"),
}
"""What each part of a request is changed by."""


def test_a_finished_prediction_is_that_of_one_request_alone(predict, street, tmp_path) -> None:
    asked = (street, "--save", "shares", "--frames", 2)
    assert predict(*asked)[0] == 0
    record = json.loads((tmp_path / "out" / "street" / "prediction.json").read_text())
    parts = {f.name for f in fields(PredictOptions)} - {"device"}, {f.name for f in fields(Outputs)}
    named = {f"{group}.{name}" for group, names in zip(("options", "outputs"), parts, strict=True) for name in names}
    assert {*CHANGES} == named | {"fps", "limit"} and {*record["request"]} == {
        *("options", "outputs", "fps", "limit", "network", "input")
    }
    for name, words in CHANGES.items():
        status, _, wrong = predict(*asked, *words)
        assert status == 2 and name in wrong.partition("another call (different: ")[2], name
    assert "finished before" in predict(*asked)[1]


def test_nor_is_it_that_of_another_network_or_video(predict, run, street, tmp_path, moving_frames, write_video) -> None:
    asked = ("--save", "shares", "--frames", 2)
    assert predict(street, *asked)[0] == 0
    weights, other = load_file(run / "model.safetensors"), shutil.copytree(run, tmp_path / "other")
    moved = next(name for name in weights if name.endswith("running_mean"))
    save_file({**weights, moved: weights[moved] + 1}, other / "model.safetensors", {"config": settings_of(run)})
    status, _, wrong = predict(street, *asked, "--checkpoint", other)
    assert status == 2 and "another call (different: network)" in wrong
    write_video(street, moving_frames(12, (50, 75), seed=2), "ffv1", "bgr0")
    status, _, wrong = predict(street, *asked)
    assert status == 2 and "another call (different: input" in wrong


def settings_of(run: Path) -> str:
    return (run / "config.yaml").read_text()


def test_a_network_is_known_by_all_that_it_computes_with(run) -> None:
    """Parameters and running statistics: not one may change unseen."""
    network = open_checkpoint(run).network
    seen = {fingerprint(network)}
    for place, tensor in enumerate(network.state_dict().values(), 2):
        tensor.view(-1)[-1] += 1
        seen.add(fingerprint(network))
        assert len(seen) == place


def test_two_processes_never_predict_into_one_folder(predict, street, tmp_path, locked_elsewhere) -> None:
    asked = (street, "--save", "shares", "--frames", 2)
    folder = tmp_path / "out" / "street"
    folder.mkdir(parents=True)
    with locked_elsewhere(folder / ".lock"):
        status, _, wrong = predict(*asked)
        assert status == 2 and f"Another process is predicting into {folder} right now" in wrong
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert predict(*asked)[0] == 0


def test_what_is_replaced_is_gone_entirely(predict, street, tmp_path) -> None:
    """Whatever an earlier call has kept: maps of other frames beside those of this call would be taken for its own."""
    folder, few = tmp_path / "out" / "street", (street, "--frames", 2, "--force", "--save")
    assert predict(*few, *recording.OUTPUTS)[0] == 0
    kept = {"overlay.mp4", "labels", "confidence", "shares.csv"}
    assert {path.name for path in folder.iterdir()} == kept | {"prediction.json"}
    for words, left in ((["shares", "--shares", "parquet"], "shares.parquet"), (["overlay"], "overlay.mp4")):
        assert predict(*few, *words)[0] == 0
        assert {path.name for path in folder.iterdir()} == {left, "prediction.json"}


def test_what_a_kill_left_without_a_finished_part_is_no_obstacle(predict, street, tmp_path, monkeypatch) -> None:
    def full(path: Path, *rest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(recording, "write_label", full)
        assert predict(street, "--save", "labels", "confidence")[0] == 2
    assert len(list((tmp_path / "out" / "street" / "labels").iterdir())) == 1
    neighbour(tmp_path / "out" / "street" / "overlay.mp4", ".partial.mp4").write_bytes(b"half")
    assert predict(street, "--save", "shares")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out" / "street").iterdir()) == ["prediction.json", "shares.csv"]


def half_done(predict: Run, street: Path, monkeypatch) -> tuple[object, ...]:
    """A prediction that ended within its second part; returns its words."""
    write = recording.write_palette

    def full(path: Path, *rest: object) -> None:
        if path.stem == "000007":
            raise OSError(28, "No space left on device", str(path))
        write(path, *rest)

    words = (street, "--save", "labels", "shares", "--part-frames", 5)
    with monkeypatch.context() as patch:
        patch.setattr(recording, "write_palette", full)
        assert predict(*words)[0] == 2
    return words


@pytest.mark.parametrize("state", ["half done", "new"])
def test_what_another_call_has_finished_since_is_left_alone(
    predict, street, tmp_path, moving_frames, monkeypatch, state
) -> None:
    """A call looks at all of its inputs first; when it comes to the second one, another call has finished that."""
    words = half_done(predict, street, monkeypatch) if state == "half done" else (street, "--save", "labels", "shares")
    write_image(tmp_path / "first" / "0.png", moving_frames(1)[0])
    done, look = list[int](), recording.Recording.writing

    def other_call_first(self):
        if self.folder.name == "street" and not done:
            done.append(0)
            done[0] = predict(*words)[0]
            done.append((self.folder / "shares.csv").stat().st_mtime_ns)
        return look(self)

    monkeypatch.setattr(recording.Recording, "writing", other_call_first)
    status, said, wrong = predict(tmp_path / "first", *words)
    table = tmp_path / "out" / "street" / "shares.csv"
    assert (status, wrong, done[0]) == (0, "", 0) and f"{table.parent}: finished before" in said
    assert table.stat().st_mtime_ns == done[1] and len(shares_in(table.parent)) == 13
    assert json.loads((table.parent / "prediction.json").read_text())["frames"] == 12


def test_what_another_call_is_at_is_said_and_the_others_are_done(predict, street, tmp_path, moving_frames) -> None:
    pytest.importorskip("fcntl")
    for name in ("first", "last"):
        write_image(tmp_path / name / "0.png", moving_frames(1)[0])
    lock = tmp_path / "out" / "street" / ".lock"
    lock.parent.mkdir(parents=True)
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-S", "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        status, said, wrong = predict(tmp_path / "first", street, tmp_path / "last", "--save", "shares")
        other.communicate(b"\n")
    assert status == 2 and "Another process is predicting into" in wrong and wrong.count("\n") == 1
    assert "first: 1 frames" in said and "last: 1 frames" in said
    assert [path.name for path in lock.parent.iterdir()] == [".lock"]


@pytest.mark.parametrize("state", ["half done", "finished"])
def test_force_removes_what_a_prediction_wrote_and_nothing_else(predict, street, tmp_path, monkeypatch, state) -> None:
    words = half_done(predict, street, monkeypatch)
    if state == "finished":
        assert predict(*words)[0] == 0
    out = tmp_path / "out" / "street"
    own = [out / name for name in ("overlay.mp4", "labels/000000_mended.png", "confidence/000000.png", "notes.txt")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert predict(street, "--save", "shares", "--force")[0] == 0
    assert [path.read_text() for path in own] == ["mine"] * 4
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "prediction.json",
        "shares.csv",
        *(path.relative_to(out).as_posix() for path in own),
    }
    for save, name in (("overlay", "overlay.mp4"), ("confidence", "confidence/000000.png")):
        status, _, wrong = predict(street, "--save", save, "--force")
        assert status == 2 and f"{out / name} is there and was not written by 'stcl predict'" in wrong
    assert [path.read_text() for path in own] == ["mine"] * 4


HOSTILE = [
    *("...mkv", "..mkv", "CON.mkv", "nul.txt.mkv", "a\nb.mkv", "a\\b.mkv", "C:.mkv"),
    *(f"{'x' * 251}.mkv", f"{'é' * 120}.mkv"),
]


def test_results_lie_in_the_folder_whatever_the_videos_are_called(predict, street, tmp_path, monkeypatch) -> None:
    videos = tmp_path / "work" / "videos"
    videos.mkdir(parents=True)
    (tmp_path / "work" / "labels").mkdir()
    (tmp_path / "work" / "labels" / "mine.png").write_text("mine")
    for name in HOSTILE:
        (videos / name).write_bytes(street.read_bytes())
    frames = tmp_path / "work" / "frames"
    for name in ("CON", "é" * 120, "y" * 251):
        write_image(frames / f"{name}.png", np.zeros((32, 48, 3), np.uint8))
    monkeypatch.chdir(videos)
    inputs = [*(f"./{name}" for name in HOSTILE[:4]), *(videos / name for name in HOSTILE[4:]), frames]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for words in ((), ("--force",)):
        status, _, wrong = predict(*inputs, "--frames", 2, "--save", "labels", "shares", *words)
        assert (status, wrong) == (0, ""), wrong
        out = tmp_path / "out"
        assert len([*out.iterdir()]) == len(inputs) and all((path / "shares.csv").is_file() for path in out.iterdir())
        made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert len([path for path in made if path.suffix == ".png"]) == 2 * len(inputs)
        for path in made:
            assert path.is_relative_to(out)
            for name in path.relative_to(out).parts:
                assert len(name.encode()) <= 204 and name not in (".", "..") and not set(name) & set("\\:\n")
                assert name.partition(".")[0].lower() not in ("con", "nul")
    assert (tmp_path / "work" / "labels" / "mine.png").read_text() == "mine"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_with_other_content_is_left_alone(predict, street, tmp_path, force) -> None:
    truth = tmp_path / "out" / "street" / "labels" / "000000.png"
    truth.parent.mkdir(parents=True)
    truth.write_text("mine")
    status, _, wrong = predict(street, *force)
    assert status == 2 and "is not empty and holds no prediction: it stays as it is" in wrong
    assert [*(tmp_path / "out").rglob("*.*")] == [truth]


def test_a_start_that_was_killed_at_once_is_no_other_content(predict, street, tmp_path) -> None:
    (tmp_path / "out" / "street" / ".parts").mkdir(parents=True)
    (tmp_path / "out" / "street" / ".lock").touch()
    (tmp_path / "out" / "street" / ".prediction.json.4711.0123abcd.tmp").touch()
    assert predict(street, "--save", "shares")[0] == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "finished"}', '{"state": "running", "request": []}'])
def test_a_damaged_record_is_replaced_with_force(predict, street, tmp_path, content) -> None:
    (tmp_path / "out" / "street").mkdir(parents=True)
    (tmp_path / "out" / "street" / "prediction.json").write_text(content)
    status, _, wrong = predict(street, "--save", "shares")
    assert status == 2 and "prediction.json is damaged" in wrong and "--force" in wrong
    assert predict(street, "--save", "shares", "--force")[0] == 0


def test_a_damaged_video_keeps_its_good_part_and_others_go_on(
    predict, street, tmp_path, moving_frames, write_video
) -> None:
    cut = write_video(tmp_path / "cut.mp4", moving_frames(60), options={"movflags": "+faststart"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    status, said, wrong = predict(cut, street)
    assert status == 2 and wrong.count("\n") == 1
    assert "is damaged: it says that it has 60 frames" in wrong and "What came before it is kept" in wrong
    record = json.loads((tmp_path / "out" / "cut" / "prediction.json").read_text())
    assert record["frames"] == len(shares_in(tmp_path / "out" / "cut")) - 1 > 0
    assert record["state"] == "finished" and "damaged" in record["problem"]
    assert f"{tmp_path / 'out' / 'street'}: 12 frames" in said


def test_a_folder_whose_frames_change_size(predict, tmp_path, moving_frames) -> None:
    for number, size in enumerate([(48, 64), (48, 64), (64, 64)]):
        write_image(tmp_path / "mixed" / f"{number}.png", moving_frames(1, size)[0])
    status, said, wrong = predict(tmp_path / "mixed")
    assert status == 2 and "2.png is 64x64, but the first one, 0.png, is 64x48" in wrong and ": 2 frames" in said


def test_processes_share_the_inputs(predict, tmp_path, moving_frames, monkeypatch) -> None:
    for name in "abc":
        for number, frame in enumerate(moving_frames(2)):
            write_image(tmp_path / name / f"{number}.png", frame)
    inputs = [tmp_path / name for name in "abc"]
    assert predict(*inputs, "--save", "shares", "--shard", "2/2")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(*inputs, "--save", "shares")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
    assert launched_shard() == (1, 2)
    assert [share_of("abcde", (number, 3)) for number in (1, 2, 3)] == [["a", "d"], ["b", "e"], ["c"]]
    with pytest.raises(SettingError, match="found 3/2"):
        share_of("abc", (3, 2))


def test_a_full_disk_loses_no_finished_part(predict, street, tmp_path, monkeypatch) -> None:
    words = half_done(predict, street, monkeypatch)
    left = sorted(path.name for path in (tmp_path / "out/street/.parts").iterdir())
    assert left == ["00000000.json", "written"]
    assert predict(*words)[0] == 0
    assert len(list((tmp_path / "out" / "street" / "labels").iterdir())) == 12


class Camera:
    """A live source that goes away, or is stopped by the user, after some frames."""

    def __init__(self, frames: list, end: BaseException) -> None:
        from stcl.data.frames import VideoFrame

        self.name, self.fps, self.time_base_s = "camera_0", Fraction(25), Fraction(1, 25)
        self.size, self.count, self.live = frames[0].shape[:2], None, True
        self._frames = [
            VideoFrame(number, number, frame, f"{number:06d}", number > 0) for number, frame in enumerate(frames)
        ]
        self._end = end

    def frames(self, first: int = 0):
        yield from self._frames[first:]
        raise self._end

    def identity(self) -> dict:
        return {"live": self.name}


@pytest.mark.parametrize("ending", ["gone", "stopped"])
def test_a_camera_that_ends_leaves_a_finished_recording(predict, tmp_path, moving_frames, monkeypatch, ending) -> None:
    from stcl.commands.predict import run as predict_files
    from stcl.errors import DataError

    end = DataError("/dev/video0 went away: no such device.") if ending == "gone" else KeyboardInterrupt()
    monkeypatch.setattr(predict_files, "open_source", lambda *rest: Camera(moving_frames(7), end))
    status, said, wrong = predict("camera:0", "--part-frames", 3)
    assert status == (2 if ending == "gone" else 0) and ("went away" in wrong) == (ending == "gone")
    out = tmp_path / "out" / "camera_0"
    assert "7 frames" in said and len(shares_in(out)) == 8 and (out / "overlay.mp4").is_file()
    status, _, wrong = predict("camera:0", "--part-frames", 3)
    assert status == 2 and "holds a recording of this live source, which cannot go on" in wrong and "--out" in wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.mp4"], "There is no video or folder 'absent.mp4'"),
        (["camera:63"], "/dev/video63 cannot be opened"),
        (["http://127.0.0.1:9/a.mp4"], "cannot be opened: connection refused"),
        (["{street}", "--size", "wide"], "expected WIDTHxHEIGHT in pixels, such as 640x480, found 'wide'"),
        (["{street}", "--size", "100x50"], "The nearest such size is"),
        (["{street}", "--shard", "2"], "expected I/N"),
        (["{street}", "--shard", "3/2"], "expected I/N with I from 1 to N"),
        (["{street}", "--scales", "1", "0"], "argument --scales: expected a number above 0, found '0'"),
        (["{street}", "--tile", "100x64"], "multiples of 32"),
        (["{street}", "--save", "nothing"], "invalid choice: 'nothing'"),
        (["{street}", "--part-frames", "0"], "at least one frame"),
        (["{street}", "{street}"], "would both go into the folder 'street'"),
        (["{street}", "--device", "abacus"], "abacus"),
        (["{street}", "--fps", "0"], "argument --fps: expected frames a second from 0.000001 to 1000000, found '0'"),
        (["{street}", "--frames", "0"], "argument --frames: expected a whole number from 1 up, found '0'"),
        (["{street}", "--fps", "nan"], "--fps: expected frames a second from 0.000001 to 1000000, found 'nan'"),
        (["{street}", "--timeout", "inf"], "argument --timeout: expected a number above 0, found 'inf'"),
        (["{street}", "--cut", "much"], "argument --cut: expected a number above 0, found 'much'"),
    ],
)
def test_wrong_input_gets_one_message(predict, street, words, message) -> None:
    status, _, wrong = predict(*(word.format(street=street) for word in words))
    assert status == 2 and message in wrong and wrong.count("\n") == 1 and wrong.startswith("stcl: error: ")


def test_all_inputs_are_done_when_nobody_reads(run, street, tmp_path, moving_frames, monkeypatch) -> None:
    """As in ``stcl predict ... | head -1``; each line is written at once, and so is the bar."""
    write_image(tmp_path / "frames" / "0.png", moving_frames(1)[0])
    words = ["predict", str(street), str(tmp_path / "frames"), "--checkpoint", str(run), "--out", str(tmp_path / "out")]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        for name in ("stdout", "__stdout__", "stderr", "__stderr__"):
            monkeypatch.setattr(sys, name, stream)
        status = main(words)
        monkeypatch.undo()
    assert status == 0
    for name in ("street", "frames"):
        assert json.loads((tmp_path / "out" / name / "prediction.json").read_text())["state"] == "finished"


def test_names_that_are_no_text(predict, street, tmp_path, moving_frames) -> None:
    """A video, a folder, its frames and the folder of the results."""
    frames = tmp_path / "fr\udce4mes"
    for number, frame in enumerate(moving_frames(2)):
        write_image(frames / f"b\udcffr_{number}.png", frame)
    street.rename(tmp_path / "str\udce4\udcdfe.mkv")
    save = ("--save", "overlay", "labels", "shares")
    status, said, _ = predict(tmp_path / "str\udce4\udcdfe.mkv", frames, *save, "--out", tmp_path / "\udcff")
    assert status == 0 and f"{tmp_path}/\\udcff/str__e~" in said
    for folder in (tmp_path / "\udcff").iterdir():
        rows = shares_in(folder)[1:]
        assert {f"{row[1]}.png" for row in rows} == {path.name for path in (folder / "labels").iterdir()}


@pytest.mark.parametrize("seconds", [86_400, 100_000])
def test_a_frame_a_day(predict, tmp_path, moving_frames, write_video, read_video, seconds) -> None:
    """As a video, and as a folder that is shown like one."""
    slow = write_video(tmp_path / "slow.mkv", moving_frames(3), "ffv1", "bgr0", Fraction(1, seconds))
    for number, frame in enumerate(moving_frames(3)):
        write_image(tmp_path / "frames" / f"{number}.png", frame)
    assert predict(slow, tmp_path / "frames", "--fps", 1 / seconds, "--part-frames", 2)[::2] == (0, "")
    for name in ("slow", "frames"):
        film = read_video(tmp_path / "out" / name / "overlay.mp4")
        assert [float(time) for time, _ in film] == [0, seconds, 2 * seconds]
        assert [float(row[2]) for row in shares_in(tmp_path / "out" / name)[1:]] == [0, seconds, 2 * seconds]


def test_what_cannot_be_recorded_keeps_no_other_from_being_done(predict, street, tmp_path, monkeypatch) -> None:
    """Two of three come to nothing; both are told of."""
    others = [Path(shutil.copy(street, street.with_name(f"{name}.mkv"))) for name in ("one", "two", "last")]
    join = recording.join_films

    def join_last(out: Path, films: object) -> None:
        if "last" not in str(out):
            raise DataError(f"{out} cannot be written.")
        join(out, films)

    monkeypatch.setattr(recording, "join_films", join_last)
    status, said, wrong = predict(*others)
    assert status == 2 and "last: 12 frames" in said
    assert all(f"{name}/overlay.mp4 cannot be written." in wrong for name in ("one", "two")) and wrong.count("\n") == 1


@pytest.mark.parametrize("name", ["loop", "loop.mp4"])
def test_a_link_to_itself(predict, tmp_path, name) -> None:
    (tmp_path / name).symlink_to(name)
    message = f"stcl: error: There is no video or folder '{tmp_path / name}'. Check the path.\n"
    assert predict(tmp_path / name)[::2] == (2, message)


def test_a_folder_that_cannot_be_written(predict, street, tmp_path) -> None:
    (tmp_path / "out").write_text("a file")
    status, _, wrong = predict(street)
    assert status == 2 and str(tmp_path / "out") in wrong and wrong.count("\n") == 1


def test_a_checkpoint_of_other_classes(predict, street) -> None:
    status, _, wrong = predict(street, "--space", "viper-cityscapes_seq")
    assert status == 2 and "was trained on the classes of" in wrong and wrong.count("\n") == 1


def test_nothing_that_is_left_of_an_address_shows_its_password(
    predict, tmp_path, moving_frames, write_video, address
) -> None:
    write_video(tmp_path / "a.mp4", moving_frames(3))
    place = address.replace("//", "//me:S3CR3T@") + "/a.mp4?user=me&pwd=S3CR3T"
    status, said, wrong = predict(place, "--save", "shares")
    (folder,) = (tmp_path / "out").iterdir()
    assert status == 0 and folder.name.startswith("127.0.0.1_") and folder.name.endswith("_a.mp4")
    kept = [*folder.rglob("*")]
    assert len(kept) == 2 and json.loads((folder / "prediction.json").read_text())["frames"] == 3
    for text in (said, wrong, *map(str, kept), *(path.read_text() for path in kept)):
        assert "S3CR3T" not in text


def test_names_are_neither_markup_nor_formulas(run, tmp_path, moving_frames, capsys) -> None:
    for number, frame in enumerate(moving_frames(2)):
        write_image(tmp_path / "[red]x :cat:" / f"=1+{number}.png", frame)
    words = [tmp_path / "[red]x :cat:", "--checkpoint", run, "--out", tmp_path / "out", "--device", "cpu"]
    assert main(["predict", *map(str, words), "--save", "shares"]) == 0
    seen = capsys.readouterr()
    (folder,) = (tmp_path / "out").iterdir()
    assert "[red]x" in seen.err and f"{folder}: 2 frames" in seen.out
    assert [row[1] for row in shares_in(folder)[1:]] == ["'=1+0", "'=1+1"]
