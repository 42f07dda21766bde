"""Counts of labels against the truth, computed by hand."""

import math

import numpy as np
import pytest
import torch

from closeness import assert_close
from stcl.ops.quality import (
    BOUNDARY_GROUPS,
    CONFIDENCE_EDGES,
    CONFIDENCE_GROUPS,
    FLOW_GROUPS,
    accuracy,
    boundary_group,
    confidence_group,
    coverage,
    domain_distance,
    feature_sums,
    flow_group,
    label_counts,
    precision,
    recall,
)
from stcl.ops.warp import photometric_error

TRUTH = torch.tensor([[[0, 0, 0, 1], [1, 1, 255, 255]]])
LABEL = torch.tensor([[[0, 1, 255, 1], [1, 0, 0, 1]]])


def test_counts_and_shares_by_hand():
    counts = label_counts(LABEL, TRUTH, 2)
    assert counts.tolist() == [[1, 1, 1], [1, 2, 0]]  # rows truth 0, 1; columns 0, 1, no label
    assert precision(counts).tolist() == pytest.approx([1 / 2, 2 / 3])
    assert recall(counts).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert float(accuracy(counts)) == pytest.approx(3 / 5)
    assert coverage(counts, torch.tensor([[1, 1, 0], [0, 1, 0]])).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_groups_are_axes_and_add_up():
    left = (torch.arange(4) < 2).long().view(1, 1, 4)
    row = torch.arange(2).view(1, 2, 1)
    counts = label_counts(LABEL, TRUTH, 2, (left, 2), (row, 3))
    assert counts.shape == (2, 3, 2, 3)
    assert torch.equal(counts.sum((0, 1)), label_counts(LABEL, TRUTH, 2))
    assert counts[1, 0].tolist() == [[1, 1, 0], [0, 0, 0]]  # left, first row
    assert counts[1, 1].tolist() == [[0, 0, 0], [1, 1, 0]]
    assert not counts[:, 2].any()


def test_labels_of_bytes_count_alike():
    assert torch.equal(label_counts(LABEL.byte(), TRUTH.byte(), 2), label_counts(LABEL, TRUTH, 2))


def test_what_does_not_occur_has_no_share():
    counts = label_counts(torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2).long(), 2)
    assert precision(counts).isnan().all()
    assert accuracy(counts).isnan()
    assert recall(counts)[0] == 0
    assert recall(counts)[1].isnan()


def test_an_edge_belongs_to_the_group_below_as_for_the_threshold():
    edges = torch.tensor([0.0, *CONFIDENCE_EDGES, 1.0])
    assert confidence_group(edges).tolist() == [0, 0, 1, 2, 3, 4]
    assert confidence_group(torch.tensor(CONFIDENCE_EDGES) + 1e-4).tolist() == [1, 2, 3, 4]
    assert len(CONFIDENCE_GROUPS) == len(CONFIDENCE_EDGES) + 1


def brute_force(truth: np.ndarray) -> np.ndarray:
    """Pixels between each pixel and the nearest one of another class, by looking at all of them."""
    height, width = truth.shape
    rows, columns = np.mgrid[:height, :width]
    found = np.full(truth.shape, 10_000)
    for y, x in np.ndindex(truth.shape):
        other = (truth != truth[y, x]) & (truth != 255)
        if other.any():
            found[y, x] = np.maximum(abs(rows - y), abs(columns - x))[other].min() - 1
    return found


def test_distance_to_the_next_class():
    chance = np.random.default_rng(0)
    truth = np.kron(chance.integers(0, 3, (3, 4)), np.ones((11, 13), int))
    truth[5:9, 7:20] = 255
    truth[20, 30] = 2
    distance = brute_force(truth)
    wanted = np.digitize(distance, [2, 4, 8])
    found = boundary_group(torch.from_numpy(truth)[None].byte())[0].numpy()
    known = truth != 255
    assert np.array_equal(found[known], wanted[known])
    assert set(found[known]) == set(range(len(BOUNDARY_GROUPS)))


def test_flow_that_leaves_and_flow_that_leads_to_something_else():
    frame, flow = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)
    other = frame.clone()
    other[:, :, :, 2] = 0.4  # whatever points there
    flow[:, 0, 0] = 1.0
    groups = flow_group(photometric_error(frame, other, flow), flow)[0]
    assert [FLOW_GROUPS[group] for group in groups[0].tolist()] == ["valid", "unlike", "valid", "valid", "outside"]
    assert [FLOW_GROUPS[group] for group in groups[1].tolist()] == ["valid", "valid", "unlike", "valid", "valid"]
    other[:, :, :, 2] = 0.09
    assert not (flow_group(photometric_error(frame, other, flow), flow) == FLOW_GROUPS.index("unlike")).any()


def test_distance_of_domains_by_hand():
    labels = torch.zeros(1, 2, 4).long()
    source = torch.tensor([[0.0, 2.0, 0.0, 2.0], [0.0, 2.0, 0.0, 2.0]]).view(1, 1, 2, 4)  # mean 1, spread 1
    sums = feature_sums(source, labels, 2), feature_sums(source + 3, labels, 2)
    assert sums[0].mean[0].item() == 1
    assert sums[0].scatter[0].item() == 8
    assert domain_distance(*sums)[0].item() == pytest.approx(3)
    assert math.isnan(domain_distance(*sums)[1])  # absent
    for scale in (10, 0.3):
        scaled = feature_sums(scale * source, labels, 2), feature_sums(scale * (source + 3), labels, 2)
        assert domain_distance(*scaled)[0].item() == pytest.approx(3)


def test_sums_over_parts_are_sums_over_all_and_rare_classes_are_left_out():
    features, labels = torch.randn(4, 6, 3, 5), torch.randint(0, 3, (4, 6, 10))
    labels[labels == 2] = 255
    labels[0, 0, 0] = 2
    whole = feature_sums(features, labels, 3)
    parts = feature_sums(features[:1], labels[:1], 3) + feature_sums(features[1:], labels[1:], 3)
    for one, two in ((whole.count, parts.count), (whole.total, parts.total), (whole.squares, parts.squares)):
        assert_close(one, two)
    small = labels[:, ::2, ::2]
    chosen = features.permute(0, 2, 3, 1)[small == 1].double()
    assert whole.count[1] == len(chosen)
    assert_close(whole.mean[1], chosen.mean(0))
    assert_close(whole.scatter[1], (chosen - chosen.mean(0)).square().sum())
    assert domain_distance(whole, whole)[:2].tolist() == [0, 0]
    assert domain_distance(whole, whole)[2].isnan()
