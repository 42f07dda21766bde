"""Whole runs of two real processes: one folder, one writer, and going on exactly."""

import signal
import subprocess
import sys
import time

import pytest
import yaml

from stcl.cli import main
from stcl.training.checkpoint import read_checkpoint
from stcl.training.model_folder import digest
from stcl.twinstreets.export import ExportRequest, export

SIZE = (64, 32)
LAUNCH = [sys.executable, "-m", "stcl.cli", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stcl.cli", "train"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny streets and a configuration whose memories all take part."""
    root = tmp_path_factory.mktemp("world")
    export(root / "source", ExportRequest("synthia-seq", "clean", clips=2, frames=3, size=SIZE), progress=False)
    city = ExportRequest("cityscapes-seq", "camera", seed=1, clips=2, frames=4, size=SIZE)
    export(root / "target", city, progress=False)
    plain = {
        "name": "tiny",
        "space": "synthia_seq-cityscapes_seq",
        "source": {"name": "synthia_seq", "root": str(root / "source"), "size": list(SIZE)},
        "target": {"name": "cityscapes_seq", "root": str(root / "target"), "size": list(SIZE)},
        "network": {"backbone": "small", "backbone_settings": {"width": 4}, "head_settings": {"width": 8}},
        "training": {"steps": 16, "batch_size": 2, "workers": 1, "accelerator": "cpu", "devices": 2, "log_every": 1},
        "method": {"name": "stcl", "alignment": {"form": "contrastive"}, "sequence_fusion": {"confidence": 0.1}},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(plain))
    return root


def start(command, *words):
    command = [*command, *map(str, words), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return output, told


def test_two_processes_stop_and_go_on_exactly(world, capsys):
    """Stopped by a signal to one of them, gone on with torchrun: the bits of an uninterrupted run, patches included."""
    whole, run = world / "whole", world / "run"
    output, _ = finish(start(LAUNCH, world / "config.yaml", "--out", whole))
    assert output.count("Finished") == 1  # one process writes and speaks
    process = start(LAUNCH, world / "config.yaml", "--out", run)
    while not (run / "metrics.csv").exists() or len((run / "metrics.csv").read_text().splitlines()) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 75, told
    assert "stopped by SIGTERM after step" in told
    stopped = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert 0 < stopped["global_step"] < 16
    one, two = stopped["stcl"]["memories"]
    assert not one["bank.frames"].equal(two["bank.frames"])  # each process has seen other clips

    finish(start(TORCHRUN, "--resume", run))
    assert digest(whole / "model.safetensors") == digest(run / "model.safetensors")
    assert (whole / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())

    (run / "model.safetensors").unlink()
    (run / "checkpoints" / "last.ckpt").unlink()  # the one before is that of the stop
    assert main(["train", "--resume", str(run), "--training.devices", "1", "--quiet"]) == 0
    told = capsys.readouterr().err
    assert "This run was on 2 devices and goes on with 1: the same batches" in " ".join(told.split())
    assert (run / "model.safetensors").is_file()
