"""Two devices train on the shares of one batch, and measure together what one measures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stcl.errors import SettingError
from stcl.training.domains import DomainData
from stcl.training.evaluate import evaluate, launch
from stcl.types import ClipSpec


def test_processes_load_their_shares_of_a_batch(make_settings):
    data = DomainData(make_settings(training={"batch_size": 4}), ClipSpec((0,), labels=(0,)), ClipSpec((0,)))

    def names(rank: int, world: int) -> dict[str, list[str]]:
        batch = next(data.batches(3, rank, world))
        return {domain: clip.names for domain, clip in batch.items()}

    whole, *shares = names(0, 1), names(0, 2), names(1, 2)
    assert set(whole) == {"source", "target"}
    for domain in whole:
        assert whole[domain] == shares[0][domain] + shares[1][domain]


def test_two_processes_measure_what_one_does(trained, streets, tmp_path):
    good, bad = shutil.copytree(trained, tmp_path / "good"), shutil.copytree(trained, tmp_path / "bad")
    target = shutil.copytree(streets / "target", tmp_path / "target")
    config = (bad / "config.yaml").read_text()
    (bad / "config.yaml").write_text(config.replace(str(streets / "target"), str(target)))
    label = sorted((target / "gtFine" / "test").rglob("*_labelIds.png"))[1]
    label.write_bytes(label.read_bytes()[:60])  # in the share of process 1 where process 0 keeps no picture of it
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "stcl.cli", "evaluate", str(good), str(bad), "--split", "test", "--samples", "2"]
    result = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode != 0
    assert f"stcl: error: PNG file {label} is cut off after 60 bytes" in result.stderr
    assert "NCCL" not in result.stderr and "gloo" not in result.stderr.lower()
    assert not (bad / "results.json").exists()

    found = json.loads((good / "results.json").read_text())
    expected = evaluate(trained, split="test", samples=2, out=tmp_path / "one", quiet=True)
    for result in (found, expected):
        del result["seconds"], result["environment"]  # threads
    assert found == expected
    assert list(found) == list(expected)
    assert pictures(good) == pictures(tmp_path / "one") and len(pictures(good)) == 6


def pictures(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "samples").rglob("*.png")}


def test_devices_that_are_not_there(make_settings, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for devices in (0, -3):
        with pytest.raises(SettingError, match=f"Evaluation on {devices} devices is not possible here: .* One device"):
            launch(make_settings("source_only"), devices)
