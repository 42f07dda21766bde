"""Training: what it opens, what decides its result, what it leaves behind, and how it ends early."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stcl
from stcl.data.io import write_image, write_label
from stcl.errors import CheckpointError, DataError, SettingError, TrainingError
from stcl.methods import METHODS, STCL, AdaptationMethod
from stcl.models import ResNet
from stcl.models.weights.own import read_weights
from stcl.resources import config_path
from stcl.training import train as module
from stcl.training.config import load_settings
from stcl.training.model_folder import digest
from stcl.training.networks import build_method, build_network
from stcl.training.train import train


def run(settings, out):
    return train(settings, out, quiet=True)


def files(folder: Path) -> set[str]:
    """Relative paths of all files; the name of an event file holds the time and the machine."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name[: name.index("tfevents") + 8] if "tfevents" in name else name for name in names}


def copy_streets(streets: Path, tmp_path: Path) -> dict:
    """A copy of the trees to damage, and the groups of settings that point to it."""
    shutil.copytree(streets, tmp_path / "streets")
    return {name: {"root": str(tmp_path / "streets" / name)} for name in ("source", "target")}


# the target stays without labels


@pytest.mark.parametrize("method", METHODS)
def test_training_never_opens_a_target_label(method, make_settings, streets, tmp_path):
    roots = copy_streets(streets, tmp_path)
    shutil.rmtree(tmp_path / "streets" / "target" / "gtFine")
    options = {"preparation": {"match_histogram": True}, "evaluation_statistics": "target"}
    out = run(make_settings(method, training={"steps": 3}, method=options, **roots), tmp_path / "run")
    assert (out / "model.safetensors").is_file()


# what decides the result


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(make_settings, tmp_path):
    first, again, other = (
        run(make_settings(seed=seed), tmp_path / name) / "model.safetensors"
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert digest(first) == digest(again)
    weights, others = load_file(first), load_file(other)
    assert any(not torch.equal(weights[name], others[name]) for name in weights)


def test_the_seed_draws_the_starting_weights_and_leaves_global_chance_alone(make_settings):
    before = torch.get_rng_state()
    one, two, three = (build_network(make_settings(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


@pytest.fixture
def keep_method(monkeypatch) -> list[AdaptationMethod]:
    """The method objects of the runs that a test trains."""
    kept: list[AdaptationMethod] = []

    def build(settings):
        kept.append(build_method(settings))
        return kept[-1]

    monkeypatch.setattr(module, "build_method", build)
    return kept


def test_the_evaluated_weights_are_the_moving_average(make_settings, tmp_path, keep_method):
    options = {"ema_momentum": 0.9, "evaluation_statistics": "running"}
    out = run(make_settings(training={"steps": 3}, method=options), tmp_path / "run")
    stored = load_file(out / "model.safetensors")
    average, student = (network.state_dict() for network in (keep_method[0].average.network, keep_method[0].network))
    assert stored.keys() == average.keys()
    assert all(torch.equal(stored[name], average[name].contiguous()) for name in stored)
    assert not torch.equal(stored["backbone.stem.0.weight"], student["backbone.stem.0.weight"])


def test_batch_norm_statistics_are_those_of_the_configuration(make_settings, tmp_path):
    """They differ, and nothing else does."""
    stored = {}
    for kind in ("source", "target", "running"):
        out = run(make_settings("source_only", method={"evaluation_statistics": kind}), tmp_path / kind)
        stored[kind] = load_file(out / "model.safetensors")
    moved = {
        (one, two): {name for name in stored[one] if not torch.equal(stored[one][name], stored[two][name])}
        for one, two in (("source", "target"), ("source", "running"), ("target", "running"))
    }
    for names in moved.values():
        assert "backbone.stem.1.running_mean" in names
        assert {name.rpartition(".")[2] for name in names} <= {"running_mean", "running_var", "num_batches_tracked"}


def test_a_run_starts_from_the_weights_of_another(make_settings, trained, tmp_path):
    """With a rate of zero it ends with them, too."""
    weights = {"weights": str(trained / "model.safetensors")}
    options = {"optimization": {"learning_rate": 0.0, "weight_decay": 0.0}}
    out = run(make_settings("source_only", seed=9, network=weights, method=options), tmp_path / "run")
    before, after = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


def test_single_frames_and_group_norm_start_from_other_weights_and_are_evaluated(make_settings, trained, tmp_path):
    network = {"weights": str(trained / "model.safetensors"), "fusion": "none", "backbone_settings": {"norm": "group"}}
    settings = make_settings(network=network, method={"preparation": {"fourier_beta": 0.05}})
    out = run(settings, tmp_path / "run")
    stored = load_file(out / "model.safetensors")
    assert not [name for name in stored if name.startswith("fusion.") or "running" in name]
    assert stcl.evaluate(out, quiet=True)["statistics"] == "each frame's own"
    assert all(tensor.isfinite().all() for tensor in stored.values())


# what it leaves behind

WHOLE_RUN = {
    "config.yaml",
    "run.json",
    "metrics.csv",
    "status.json",
    "model.safetensors",
    "checkpoints/last.ckpt",
    "checkpoints/previous.ckpt",
    "events/events.out.tfevents",
}


def test_a_finished_run_holds_exactly_these_files(make_settings, tmp_path):
    settings = make_settings(title="Tiny", training={"steps": 3, "checkpoint_every": 2, "log_every": 1})
    out = run(settings, tmp_path / "deep" / "run")
    assert files(out) == WHOLE_RUN
    assert (out / "config.yaml").read_text() == settings.dump()
    assert load_settings(out / "config.yaml").as_dict() == settings.as_dict()
    status = json.loads((out / "status.json").read_text())
    assert status["finished"] is True
    assert (status["state"], status["step"], status["steps"]) == ("finished", 3, 3)
    assert 0 < status["seconds"] < 60
    header, *rows = (out / "metrics.csv").read_text().splitlines()
    assert {"step", "loss/source", "loss/total"} <= set(header.split(","))
    assert len(rows) == 3
    metadata = read_weights(out / "model.safetensors")[1]
    assert json.loads(metadata["classes"]) == list(settings.space.names)
    assert metadata["config"] == settings.dump()
    assert metadata["selection"] == "last EMA weights"


def test_a_short_run_has_one_checkpoint(trained):
    """That of its last step."""
    assert files(trained) == WHOLE_RUN - {"checkpoints/previous.ckpt"}


def test_a_run_says_what_it_is(trained, streets):
    record = json.loads((trained / "run.json").read_text())
    assert record["command"] and record["started"] and record["code"]["version"] == stcl.__version__
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["packages"]["lightning"]
    source, target = record["data"]["source"], record["data"].get("target")
    assert (source["name"], source["frames"], source["labelled"]) == ("synthia_seq", 6, 6)
    assert source["root"] == str(streets / "source")
    assert len(source["digest"]) == 32 and target is None  # plain source only looks at no target frame


def test_a_folder_holds_one_run(make_settings, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(SettingError, match=r"trained holds a finished run\. Choose another folder with --out"):
        run(make_settings(), trained)
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


@pytest.mark.parametrize("own", ["metrics.csv", "model.safetensors", "run.json", "checkpoints/last.ckpt", "events/a"])
def test_a_folder_with_files_of_a_runs_names_is_left_alone(make_settings, tmp_path, own):
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text("mine")
    with pytest.raises(SettingError, match=rf"{own.split('/')[0]} is there and was not written by 'stcl train'"):
        run(make_settings(), tmp_path)
    assert files(tmp_path) == {own} and (tmp_path / own).read_text() == "mine"


def test_of_two_runs_that_begin_at_once_one_gets_the_folder(make_settings, tmp_path, monkeypatch):
    """Both find it empty; the second one begins while the first one reads its data."""
    settings, out, build = make_settings("source_only"), tmp_path / "run", module.build_method

    def other_first(given):
        monkeypatch.setattr(module, "build_method", build)
        train(settings, out, quiet=True)
        return build(given)

    monkeypatch.setattr(module, "build_method", other_first)
    with pytest.raises(SettingError, match="holds a finished run"):
        train(settings, out, quiet=True)
    assert files(out) == WHOLE_RUN - {"checkpoints/previous.ckpt"}


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"network": {"backbone_settings": {"widht": 8}}}, SettingError, "Did you mean 'width'"),
        ({"network": {"backbone_settings": {"width": 10**7}}}, SettingError, "too large for this machine's memory"),
        (
            {"network": {"backbone_settings": {"width": "wide"}}},
            SettingError,
            r"network\.backbone_settings \{'width': 'w",
        ),
        (
            {"network": {"head_settings": {"dilations": 3}}},
            SettingError,
            r"network\.head_settings \{'dilations': 3\} do not",
        ),
        ({"network": {"weights": "nowhere.safetensors"}}, CheckpointError, r"no weights file 'nowhere\.safetensors'"),
        ({"network": {"weights": "builtin:none"}}, SettingError, "Unknown weights file 'none'"),
        ({"training": {"accelerator": "tpu"}}, SettingError, r"training\.accelerator 'tpu' .* cannot be used here: "),
        (
            {"training": {"accelerator": "quantum"}},
            SettingError,
            r"training\.accelerator 'quantum' .*Available names are",
        ),
        ({"training": {"precision": "16-mixed"}}, SettingError, r"'16-mixed' is not possible on cpu.*Take 'bf16-"),
        ({"training": {"devices": 0}}, SettingError, r"training\.devices 0 .* cannot be used here"),
        ({"training": {"devices": "some"}}, SettingError, r"training\.devices 'some' .* cannot be used here"),
        (
            {"training": {"devices": 2, "batch_size": 3}},
            SettingError,
            r"training\.batch_size 3 cannot be split over 2 devices: .*multiple of 2",
        ),
        ({"source": {"root": "/nowhere"}}, DataError, "Root /nowhere of data set 'synthia_seq' does not exist"),
        ({"target": {"frames": "labeled"}}, SettingError, "Unknown choice of frames 'labeled'"),
        ({"method": {"teacher": {"interval": 9}}}, DataError, "no clip fits"),
        (
            {"network": {"head": "mlp", "auxiliary": False, "head_settings": {"dilations": [6]}}},
            SettingError,
            r"head_settings: head 'mlp' would not read dilations, only dropout, upsample, width",
        ),
        ({"network": {"head_settings": {"upsample": 2}}}, SettingError, "head 'stcl' and the auxiliary head would not"),
    ],
)
def test_settings_that_cannot_work_leave_no_folder(make_settings, tmp_path, groups, error, message):
    with pytest.raises(error, match=message):
        run(make_settings(**groups), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(make_settings, tmp_path):
    with pytest.raises(SettingError, match=r"training\.accelerator 'gpu' with training\.devices 1 .*auto"):
        run(make_settings(training={"accelerator": "gpu"}), tmp_path / "run")


def test_a_run_folder_that_cannot_be_made(make_settings, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SettingError, match=rf"Cannot write run folder {out} \(.*\)\. Choose another with --out"):
            run(make_settings("source_only"), out)


def test_a_flow_cache_that_cannot_be_made(make_settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"flow\.cache: cannot make folder .*/file/.*train \(Not a directory"):
        run(make_settings(flow={"cache": str(tmp_path / "file")}), tmp_path / "run")


# how it ends early


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_loader_comes_through_fit(workers, make_settings, streets, tmp_path):
    roots = copy_streets(streets, tmp_path)
    frames = sorted((tmp_path / "streets" / "source").rglob("rgb/*.png"))
    for frame in frames:
        frame.write_bytes(frame.read_bytes()[:200])
    settings = make_settings(training={"workers": workers}, **roots)
    with pytest.raises(DataError, match=r"PNG file .*/rgb/00000\d\.png is cut off after 200 bytes\. Copy or download"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(
        SettingError, match=r"run holds an unfinished run\. Go on with it: stcl train --resume .*run; or choose another"
    ):
        run(settings, tmp_path / "run")


def test_a_damaged_target_frame_stops_the_calibration(make_settings, streets, tmp_path, monkeypatch):
    """Not only the loader of fit: an error after the last step leaves no weights either."""
    roots = copy_streets(streets, tmp_path)
    for frame in (tmp_path / "streets" / "target" / "leftImg8bit_sequence" / "train").rglob("*.png"):
        frame.write_bytes(b"")
    options = {"preparation": {"match_histogram": False}, "evaluation_statistics": "target"}
    with pytest.raises(DataError, match=r"leftImg8bit\.png is empty"):
        run(make_settings("source_only", method=options, **roots), tmp_path / "run")
    assert "model.safetensors" not in files(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_a_killed_loader_process(make_settings, tmp_path, monkeypatch):
    def killed(self, batch):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(STCL, "forward", killed)
    with pytest.raises(TrainingError, match=r"A loader process died .*lower training\.workers or training\.batch_size"):
        run(make_settings(), tmp_path / "run")


def test_a_full_device(make_settings, tmp_path, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore")

    monkeypatch.setattr(STCL, "forward", full)
    message = r"memory is too small \(CUDA out of .*20 GiB\.\)\. .*--preset 24gb.*training\.batch_size \(now 2\)"
    with pytest.raises(TrainingError, match=message):
        run(make_settings(), tmp_path / "run")


def test_a_diverged_training_is_no_result(make_settings, tmp_path):
    options = {"optimization": {"learning_rate": 1e30}}
    settings = make_settings("source_only", training={"steps": 9, "skipped_steps": 2}, method=options)
    with pytest.raises(TrainingError, match=r"Training stopped: .*lower method\.optimization\.learning_rate"):
        run(settings, tmp_path / "run")
    assert "model.safetensors" not in files(tmp_path / "run")


def test_weights_that_are_no_numbers_are_no_result(make_settings, tmp_path, monkeypatch):
    """The last look before anything is written."""
    settings = make_settings("source_only", method={"evaluation_statistics": "running"})
    steps = module.train_steps

    def spoil(training, *rest):
        steps(training, *rest)
        next(training.method.average.network.parameters()).fill_(float("nan"))

    monkeypatch.setattr(module, "train_steps", spoil)
    with pytest.raises(TrainingError, match="Training diverged"):
        run(settings, tmp_path / "run")
    assert "model.safetensors" not in files(tmp_path / "run")


def test_defects_keep_their_traceback(make_settings, tmp_path, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(STCL, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(make_settings(), tmp_path / "run")


# the published configuration

PUBLISHED = "synthia_seq-cityscapes_seq/stcl_published"


def test_the_published_configuration_builds_the_published_network():
    settings = load_settings(config_path(PUBLISHED), ["--method.teacher.kind", "ema"])  # needs no weights
    assert (settings.source.size, settings.target.size) == ((1280, 640), (1024, 512))
    method = build_method(settings)
    assert type(method) is STCL
    backbone = method.network.backbone
    assert isinstance(backbone, ResNet)
    assert [len(getattr(backbone, f"layer{number}")) for number in (1, 2, 3, 4)] == [3, 4, 23, 3]
    assert backbone.channels["layer4"] == 2048
    assert backbone.strides["layer4"] == 8
    assert method.network.aux_head is not None
    assert method.target_spec.labels == ()


@pytest.mark.slow
def test_a_published_step_at_full_size(tmp_path):
    """One step of the published configuration on native frames: 1280x760 cropped to 1280x640, 2048x1024 to 1024x512."""
    generator = torch.Generator().manual_seed(0)

    def picture(width, height):
        coarse = torch.randint(0, 256, (height // 8, width // 8, 3), generator=generator, dtype=torch.uint8).numpy()
        return coarse.repeat(8, 0).repeat(8, 1)

    for number in range(3):
        write_image(tmp_path / f"source/rgb/{number:06d}.png", picture(1280, 760))
        raw = (picture(1280, 760)[..., :1] % 16).astype("uint16").repeat(3, 2)
        write_label(tmp_path / f"source/label/{number:06d}.png", raw)
    for number in range(17, 20):
        name = f"train/ulm/ulm_000000_{number:06d}_leftImg8bit.png"
        write_image(tmp_path / "target/leftImg8bit_sequence" / name, picture(2048, 1024))
    overrides = [
        *("--source.root", str(tmp_path / "source"), "--target.root", str(tmp_path / "target")),
        *("--flow.cache", str(tmp_path / "flow"), "--training.steps", "1", "--training.workers", "0"),
        *(
            "--method.teacher.frozen_steps",
            "0",
            "--training.calibration_clips",
            "1",
            "--training.precision",
            "bf16-mixed",
        ),
    ]
    settings = load_settings(config_path(PUBLISHED), overrides)
    out = run(settings, tmp_path / "run")
    losses = (out / "metrics.csv").read_text()
    assert "loss/fused_target" in losses
    assert all(torch.isfinite(tensor).all() for tensor in load_file(out / "model.safetensors").values())
