"""On a GPU: every method trains in every precision, goes on exactly where asked to, and measures as a CPU does."""

import json

import pytest
import torch
from safetensors.torch import load_file

import stcl
from closeness import assert_close
from stcl.methods import METHODS, STCL
from stcl.training.evaluate import evaluate
from stcl.training.model_folder import digest
from stcl.training.train import resume, train
from stcl.types import FramePair

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
ALL_PARTS = {
    "warmup": 2,
    "teacher": {"kind": "frozen", "frozen_steps": 6},
    "sequence_fusion": {"confidence": 0.1, "into_source": True},
    "feature_fusion": {"stage": "stage2"},
    "alignment": {"form": "contrastive", "pairs": 2},
    "preparation": {"match_histogram": True, "augment_source": True, "rescale": [1.0, 1.5]},
}


def on_gpu(**training):
    return {"steps": 4, "accelerator": "gpu", "workers": 1, **training}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", METHODS)
def test_a_run(make_settings, tmp_path, name, precision):
    run = train(make_settings(name, training=on_gpu(precision=precision)), tmp_path / "run", quiet=True)
    record = json.loads((run / "run.json").read_text())
    assert record["environment"]["device"] == torch.cuda.get_device_name()
    weights = load_file(run / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert evaluate(run, quiet=True)["environment"]["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("method", [{}, ALL_PARTS], ids=["as it is", "all parts"])
def test_it_goes_on_exactly_where_it_shall_be_deterministic(make_settings, tmp_path, monkeypatch, method):
    """``training.deterministic``: equal bits twice, and equal bits after an interruption."""
    training = on_gpu(steps=12, checkpoint_every=3, deterministic=True)
    settings = make_settings("stcl", method=method, training=training)
    whole, again = (train(settings, tmp_path / name, quiet=True) for name in ("whole", "again"))
    assert digest(whole / "model.safetensors") == digest(again / "model.safetensors")
    step = STCL.forward

    def breaks(self, batch):
        if self.step == 7:
            raise RuntimeError("power cut")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(STCL, "forward", breaks)
        with pytest.raises(RuntimeError, match="power cut"):
            train(settings, tmp_path / "cut", quiet=True)
    resume(tmp_path / "cut", quiet=True)
    assert digest(whole / "model.safetensors") == digest(tmp_path / "cut" / "model.safetensors")
    assert (whole / "metrics.csv").read_text() == (tmp_path / "cut" / "metrics.csv").read_text()


def test_compiled(make_settings, tmp_path):
    run = train(make_settings("stcl", training=on_gpu(compile=True)), tmp_path / "run", quiet=True)
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())


def test_scores_are_those_of_a_cpu(trained):
    network = stcl.load_model(trained).double().eval()
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 2, 3, 32, 64, generator=generator, dtype=torch.float64)
    flow = torch.randn(2, 2, 32, 64, generator=generator, dtype=torch.float64) * 3
    pair = (frames[:, 0], frames[:, 1], flow)
    with torch.no_grad():
        here = network(FramePair(*pair)).logits
        there = network.cuda()(FramePair(*(tensor.cuda() for tensor in pair))).logits
    assert_close(there.cpu(), here)


def test_results_are_those_of_a_cpu(make_settings, tmp_path, monkeypatch):
    """The same weights, measured on both; they may differ where two classes have nearly equal scores."""
    run = train(make_settings("source_only", training=on_gpu()), tmp_path / "run", quiet=True)
    there = evaluate(run, quiet=True)
    monkeypatch.setattr("stcl.training.evaluate.device_of", lambda settings: "cpu")
    here = evaluate(run, quiet=True)
    assert (there["environment"]["device"], here["environment"]["device"]) == (torch.cuda.get_device_name(), "cpu")
    counts, others = (torch.tensor(results["confusion"]) for results in (there, here))
    assert counts.sum() == others.sum()
    assert (counts - others).abs().sum() < 0.01 * counts.sum()
