"""A long run: nothing grows with the number of steps."""

import pytest

from stcl.methods import STCL
from stcl.training.train import train

STEPS = 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_ten_thousand_steps(make_settings, tmp_path, monkeypatch, resident_mb):
    step, seen = STCL.forward, []

    def watched(self, batch):
        if self.step % 500 == 0:
            seen.append(resident_mb())
        return step(self, batch)

    monkeypatch.setattr(STCL, "forward", watched)
    settings = make_settings(
        network={"backbone_settings": {"width": 4}, "head_settings": {"width": 8}},
        training={"steps": STEPS, "batch_size": 1, "log_every": 10, "checkpoint_every": 500, "workers": 1},
        method={"preparation": {"match_histogram": True, "augment_source": True}},
    )
    out = train(settings, tmp_path / "run", quiet=True)
    assert (out / "model.safetensors").is_file()
    print("MiB every 500 steps:", [round(value, 1) for value in seen])  # noqa: T201  the figure is what one wants to see
    settled, end = max(seen[2:6]), max(seen[-4:])
    assert end - settled < 15, seen
