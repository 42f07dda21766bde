import math

import pytest
import torch
import torch.nn.functional as F

from closeness import assert_close
from stcl.labels import IGNORE
from stcl.ops.align import Centroids, aggregate, class_centroids, contrastive, mmd, temporal_weights

CLASSES, CHANNELS = 6, 7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_centroids(seed=0, present=(1, 1, 1, 1, 1, 1), spread=1.0):
    mean = torch.randn(CLASSES, CHANNELS, generator=generator(seed)) * spread
    present = torch.tensor(present, dtype=torch.bool)
    return Centroids(mean * present.unsqueeze(1), present)


# ---- centroids ----


def test_centroids_by_hand():
    features = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 6.0]]]])  # (1, 2, 2, 2)
    labels = torch.tensor([[[0, 0], [2, IGNORE]]])
    mean, present = class_centroids(features, labels, 3, minimum_pixels=1)
    assert mean.tolist() == [[2, 1], [0, 0], [5, 4]]
    assert present.tolist() == [True, False, True]


def test_centroids_of_a_batch_are_means_over_all_its_pixels():
    features = torch.randn(3, CHANNELS, 8, 10, generator=generator())
    labels = torch.randint(0, CLASSES, (3, 8, 10), generator=generator(1)).to(torch.uint8)
    mean, present = class_centroids(features, labels, CLASSES)
    assert present.all()
    for c in range(CLASSES):
        assert_close(mean[c], features.movedim(1, -1)[labels == c].mean(0))


@pytest.mark.parametrize(("pixels", "present"), [(4, False), (5, True)])
def test_a_handful_of_pixels_is_no_class(pixels, present):
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels.view(-1)[:pixels] = 1
    assert class_centroids(torch.rand(1, CHANNELS, 4, 4), labels, CLASSES).present[1] == present


def test_pixels_are_counted_on_the_grid_of_the_features():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :8] = 3
    features = torch.zeros(1, CHANNELS, 4, 4)
    features[:, :, :2] = 2
    centroids = class_centroids(features, labels, CLASSES, minimum_pixels=8)
    assert centroids.present.tolist() == [True, False, False, True, False, False]
    assert (centroids.mean[3] == 2).all() and (centroids.mean[0] == 0).all()
    assert not class_centroids(features, labels, CLASSES, minimum_pixels=9).present.any()


def test_autocast_does_not_round_centroids():
    features = torch.randn(2, CHANNELS, 8, 10, generator=generator())
    labels = torch.randint(0, CLASSES, (2, 8, 10), generator=generator(1))
    pairs = [class_centroids(features + shift, labels, CLASSES) for shift in (0, 1)]
    weights = torch.tensor([0.3, 0.7])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [class_centroids(features + shift, labels, CLASSES) for shift in (0, 1)]
        together, loss = aggregate(inside, weights), contrastive(inside[0], inside[1])
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(inside, pairs, strict=True))
    assert torch.equal(together.mean, aggregate(pairs, weights).mean)
    assert torch.equal(loss, contrastive(*pairs))


def test_ignored_pixels_have_no_centroid():
    labels = torch.full((1, 4, 4), IGNORE)
    features = torch.rand(1, CHANNELS, 4, 4, requires_grad=True)
    mean, present = class_centroids(features, labels, CLASSES)
    assert not present.any() and not mean.any()
    mean.sum().backward()
    assert (features.grad == 0).all()


# ---- along time ----


def test_equal_weights():
    logits = [torch.randn(1, CLASSES, 4, 4) for _ in range(2)]
    assert temporal_weights(logits, adaptive=False).tolist() == [0.5, 0.5]
    assert temporal_weights(logits[:1], adaptive=False).tolist() == [1]
    assert temporal_weights(logits[:1], adaptive=True).tolist() == [1]


def test_adaptive_weights_prefer_the_surer_pair():
    sure = 10.0 * F.one_hot(torch.zeros(1, 4, 4, dtype=torch.long), CLASSES).permute(0, 3, 1, 2)
    unsure = torch.zeros(1, CLASSES, 4, 4, requires_grad=True)
    weights = temporal_weights([sure, unsure], adaptive=True)
    assert weights.sum() == pytest.approx(1)
    assert_close(weights, torch.tensor([0.0, -math.log(CLASSES)]).softmax(0), 0.01, scale=1)
    assert not weights.requires_grad


def test_aggregation_is_a_weighted_mean():
    first, second = random_centroids(0), random_centroids(1)
    together = aggregate([first, second], torch.tensor([0.25, 0.75]))
    assert_close(together.mean, 0.25 * first.mean + 0.75 * second.mean)
    alone = aggregate([first], torch.ones(1))
    assert_close(alone.mean, first.mean)
    assert alone.present.all()


def test_a_class_that_one_pair_lacks_is_the_other_pairs():
    first, second = random_centroids(0, (1, 1, 1, 0, 0, 1)), random_centroids(1, (1, 0, 1, 1, 0, 1))
    mean, present = aggregate([first, second], torch.tensor([0.25, 0.75]))
    assert present.tolist() == [True, True, True, True, False, True]
    assert_close(mean[1], first.mean[1])
    assert_close(mean[3], second.mean[3])
    assert_close(mean[0], 0.25 * first.mean[0] + 0.75 * second.mean[0])
    assert not mean[4].any()


# ---- maximum mean discrepancy ----


def direct_mmd(source, target, kernels=5, factor=2.0):
    """The textbook's double sums over two lists of vectors."""
    a, b = [list(rows.double()) for rows in (source, target)]
    rows = a + b
    distances = [float((x - y).square().sum()) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
    bandwidth = sum(distances) / len(distances)
    scales = [bandwidth / factor ** (kernels // 2) * factor**i for i in range(kernels)]

    def mean_kernel(first, second):
        values = [torch.exp(-(x - y).square().sum() / scale) for x in first for y in second for scale in scales]
        return sum(values) / (len(first) * len(second))

    return float(mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))


@pytest.mark.parametrize(("kernels", "factor"), [(5, 2.0), (3, 4.0), (1, 2.0)])
def test_equals_a_direct_implementation(kernels, factor):
    source, target = random_centroids(0), random_centroids(1, spread=2.0)
    found = mmd(source, target, kernels, factor)
    assert found.item() == pytest.approx(direct_mmd(source.mean, target.mean, kernels, factor), rel=1e-4)


def test_absent_classes_take_no_part():
    source, target = random_centroids(0, (1, 1, 1, 0, 1, 0)), random_centroids(1, (1, 1, 0, 1, 1, 0))
    both = source.present & target.present
    expected = direct_mmd(source.mean[both], target.mean[both])
    assert mmd(source, target).item() == pytest.approx(expected, rel=1e-4)
    # whatever stands in the rows of absent classes
    other = Centroids(torch.where(both.unsqueeze(1), target.mean, 100.0), target.present)
    assert_close(mmd(source, other), mmd(source, target))


def test_rows_of_zeros_in_both_sets_do_not_look_aligned():
    """Six absent classes, equal (zero) in both sets, must not lower the distance of the four others."""

    def padded(centroids, rows):
        return Centroids(
            torch.cat((centroids.mean, torch.zeros(rows, CHANNELS))),
            torch.cat((centroids.present, torch.zeros(rows, dtype=torch.bool))),
        )

    source, target = random_centroids(0), random_centroids(1)
    assert_close(mmd(padded(source, 6), padded(target, 6)), mmd(source, target))
    naive = [Centroids(padded(item, 6).mean, torch.ones(12, dtype=torch.bool)) for item in (source, target)]
    assert mmd(*naive) < 0.8 * mmd(source, target)


def test_equal_sets_have_distance_zero():
    centroids = random_centroids()
    assert_close(mmd(centroids, centroids), torch.tensor(0.0), scale=1)


def test_the_distance_grows_with_a_shift():
    source = random_centroids()
    shifted = [mmd(source, Centroids(source.mean + shift, source.present)).item() for shift in (0, 0.2, 0.5, 1, 2, 4)]
    assert shifted == sorted(shifted)
    assert shifted[-1] > 10 * shifted[1]


@pytest.mark.parametrize("present", [(0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0)])
def test_too_few_classes_give_finite_numbers(present):
    mean = random_centroids(0).mean.requires_grad_()
    source = Centroids(mean, torch.tensor(present, dtype=torch.bool))
    distance = mmd(source, random_centroids(1))
    distance.backward()
    assert distance.isfinite() and mean.grad.isfinite().all()
    assert (distance == 0) == (sum(present) == 0)
    assert torch.equal(mean.grad.abs().sum(1) > 0, source.present)


def test_the_distance_pulls_both_sets():
    features = [torch.randn(1, CHANNELS, 8, 8, generator=generator(seed)).requires_grad_() for seed in range(2)]
    labels = torch.arange(64).view(1, 8, 8) % CLASSES
    mmd(*(class_centroids(f, labels, CLASSES) for f in features)).backward()
    for f in features:
        assert f.grad.abs().amin() > 0


def test_descent_brings_the_sets_together():
    source, mean = random_centroids(0), random_centroids(1).mean.requires_grad_()
    optimizer = torch.optim.Adam([mean], lr=0.05)
    distances = []
    for _ in range(60):
        loss = mmd(source, Centroids(mean, source.present))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(loss.item())
    assert distances[-1] < 0.3 * distances[0]


def test_autocast_does_not_round_the_distance():
    source = random_centroids()
    target = Centroids(source.mean + 0.05, source.present)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mmd(source, target)
    assert_close(inside, mmd(source, target))


# ---- contrastive ----


def test_lower_where_the_right_class_is_nearest():
    anchors = random_centroids(0)
    right = contrastive(Centroids(anchors.mean * 3, anchors.present), anchors)  # length does not matter
    near = contrastive(Centroids(anchors.mean + 0.5 * random_centroids(1).mean, anchors.present), anchors)
    wrong = contrastive(Centroids(anchors.mean.roll(1, 0), anchors.present), anchors)
    assert right < near < wrong


def test_contrastive_equals_the_definition():
    target, anchors = random_centroids(0, (1, 1, 0, 1, 1, 0)), random_centroids(1, (1, 1, 1, 0, 1, 0))
    total, count = 0.0, 0
    for c in range(CLASSES):
        if target.present[c] and anchors.present[c]:
            scores = [
                F.cosine_similarity(target.mean[c], anchors.mean[k], dim=0) / 0.2
                for k in range(CLASSES)
                if anchors.present[k]
            ]
            own = F.cosine_similarity(target.mean[c], anchors.mean[c], dim=0) / 0.2
            total += float(torch.stack(scores).logsumexp(0) - own)
            count += 1
    assert count == 3
    assert contrastive(target, anchors, temperature=0.2).item() == pytest.approx(total / count, rel=1e-4)


def test_temperature_sharpens():
    anchors = random_centroids(0)
    near = Centroids(anchors.mean + 0.2 * random_centroids(1).mean, anchors.present)
    assert contrastive(near, anchors, 0.05) < contrastive(near, anchors, 0.5)


def test_contrastive_moves_the_target_alone():
    target, anchors = random_centroids(0, (1, 1, 0, 1, 1, 1)), random_centroids(1, (1, 1, 1, 0, 1, 1))
    target.mean.requires_grad_()
    anchors.mean.requires_grad_()
    contrastive(target, anchors).backward()
    assert anchors.mean.grad is None
    assert target.mean.grad.isfinite().all()
    assert torch.equal(target.mean.grad.abs().sum(1) > 0, target.present & anchors.present)


def test_contrastive_without_a_shared_class_is_zero():
    target, anchors = random_centroids(0, (1, 0, 0, 0, 0, 0)), random_centroids(1, (0, 1, 0, 0, 0, 0))
    target.mean.requires_grad_()
    loss = contrastive(target, anchors)
    loss.backward()
    assert loss == 0
    assert (target.mean.grad == 0).all()
