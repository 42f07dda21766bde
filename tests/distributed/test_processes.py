"""Two processes with half of the clips each take the step that one takes with all of them."""

import subprocess
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from closeness import assert_close

SCRIPT = str(Path(__file__).with_name("observe.py"))
observe = SimpleNamespace(**run_path(SCRIPT))
NAMES = list(observe.METHODS)


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return observe.observe()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("processes")
    started = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), "2", str(folder)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_both_have_the_gradients_of_one(name, one, two):
    expected = one["methods"][name]["gradients"]
    assert len(expected) > 20 and all(gradient.abs().max() > 0 for gradient in expected.values())
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for process in two:
        found = process["methods"][name]["gradients"]
        for key, gradient in expected.items():
            assert_close(found[key], gradient, scale=largest, where=key)
            assert_close(found[key], gradient, 1e-4, where=key)  # sums that nearly cancel keep fewer digits


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_the_losses_is_the_loss_of_one(name, one, two):
    for process in two:
        assert_close(process["methods"][name]["loss"], one["methods"][name]["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_statistics_prototypes_and_rare_classes_agree(name, one, two):
    for process in two:
        assert_close(process["methods"][name]["buffers"], one["methods"][name]["buffers"], 1e-5)


def test_a_share_with_few_labels_counts_with_its_pixels(one, two):
    for process in two:
        assert_close(process["losses"], one["losses"])
    assert one["losses"]["none"] == 0


def test_centroids_and_weights_along_time_are_those_of_all_clips(one, two):
    for process in two:
        assert_close(process["alignment"], one["alignment"])


def test_what_is_rare_is_counted_together(one, two):
    for process in two:
        assert_close(process["rare"], one["rare"])
    assert one["rare"]["rare"].any()


def test_labels_are_chosen_by_the_counts_of_all(one, two):
    for process in two:
        assert_close(process["expected"], one["expected"], 1e-5)


@pytest.mark.parametrize("momentum", ["0.3", "None"])
def test_batch_norm_of_uneven_shares(momentum, one, two):
    for process in two:
        assert_close(process["norm"][momentum], one["norm"][momentum])


def test_confusion_matrices_add_up_exactly(one, two):
    assert all(torch.equal(process["counts"], one["counts"]) for process in two)


def test_shares_are_disjoint_and_together_the_batch(one, two):
    for whole, first, second in zip(one["batches"], two[0]["batches"], two[1]["batches"], strict=True):
        assert first + second == whole


def test_every_process_hears_of_all(one, two):
    assert one["everyone"] == ["process 0"]
    assert [process["everyone"] for process in two] == [["process 0", "process 1"]] * 2


def test_the_comparison_sees_a_difference(one):
    gradients = one["methods"]["mmd"]["gradients"]
    with pytest.raises(AssertionError):
        assert_close({name: tensor * 1.001 for name, tensor in gradients.items()}, gradients)
