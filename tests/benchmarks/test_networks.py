"""What benchmarks/networks.py counts is what the networks have and do."""

import json

import pytest
import torch

from stcl.training.networks import untrained


@pytest.fixture
def networks(load):
    return load("networks")


def test_multiply_accumulates_are_those_of_the_convolutions(networks):
    """The small network consists of convolutions; each is counted here by hand."""
    size = (64, 32)
    settings = networks.settings_of("small", size)
    network, macs = untrained(settings).eval(), []

    def count(layer, inputs, output):
        kernel = layer.weight[0].numel()
        macs.append(output[0].numel() * kernel)

    used = [*network.backbone.modules(), *network.head.modules(), *network.aux_head.modules()]
    for layer in used:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.frame_scores(torch.rand(1, 3, 32, 64))
    parameters, gmacs = networks.arithmetic(settings, size)
    assert parameters == sum(parameter.numel() for parameter in network.parameters())
    assert gmacs * 1e9 == pytest.approx(sum(macs))


def test_a_table_and_a_line_of_json(networks, capsys):
    assert networks.main(["--network", "small", "--size", "64x32", "128x64", "--timed", "0.1", "--rounds", "1"]) == 0
    small, large = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (small["size"], large["size"]) == ([64, 32], [128, 64])
    assert large["gmacs"] == pytest.approx(4 * small["gmacs"], rel=0.1)
    assert small["train_seconds"] > small["inference_seconds"] > 0
    assert large["train_seconds"] is None and large["inference_seconds"] is None
    for row in (small, large):
        weights = 4 * row["parameters"]
        assert row["train_bytes"] > 3 * weights and row["train_bytes"] > row["inference_bytes"] > weights


@pytest.mark.slow
def test_networks_without_contents_are_counted_as_well(networks):
    row = networks.row_of("mit_b0", (64, 32), networks.Way("cpu", "32-true", timed=0.0, rounds=1))
    assert row.train_bytes > row.inference_bytes > 4 * row.parameters
