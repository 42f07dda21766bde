"""The count of benchmarks/memory.py is that of a real step, and the presets fit their cards."""

import json

import pytest
import torch

TINY = [
    *("--source.size", "[96, 64]", "--target.size", "[64, 32]", "--network.weights", "null"),
    *("--network.backbone_settings.width", "4", "--network.head_settings.width", "4"),
]


@pytest.fixture
def memory(load):
    return load("memory")


def test_bytes_count_while_they_live(memory):
    with memory.LiveBytes() as live:
        first = torch.ones(1000)
        view = first[10:]
        assert (live.now, live.peak) == (4000, 4000)
        second = view * 2
        assert live.now == 4000 + 3960
        del first, second
        assert (live.now, live.peak) == (4000, 7960)  # the view keeps the first one alive
        del view
        assert (live.now, live.peak) == (0, 7960)


@pytest.mark.parametrize(
    "overrides", [[], ["--training.precision", "bf16-mixed", "--training.gradient_checkpointing", "true"]]
)
def test_the_count_is_that_of_a_real_step(memory, overrides):
    rows = [memory.row_of("twinstreets/stcl", "none", [*TINY, *overrides], device) for device in ("count", "cpu")]
    assert rows[0] == rows[1]
    assert rows[0].peak_bytes > rows[0].between_steps_bytes > 0


@pytest.mark.slow
def test_checkpointing_and_a_crop_save_memory(memory):
    ways = [[], ["--training.gradient_checkpointing", "true"], ["--method.preparation.crop", "[32, 32]"]]
    plain, saving, cropped = (memory.row_of("twinstreets/stcl", "none", [*TINY, *way], "count") for way in ways)
    assert saving.peak_bytes < plain.peak_bytes and cropped.peak_bytes < plain.peak_bytes


@pytest.mark.slow
def test_the_tightest_preset_leaves_a_fifth_of_its_card(memory, capsys):
    assert memory.main(["--presets", "24gb"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["preset"] == "24gb" and 0.5 < row["share_of_card"] <= memory.SHARE
