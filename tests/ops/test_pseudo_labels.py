import pytest
import torch
import torch.nn.functional as F

from closeness import assert_close
from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.ops.pseudo_labels import (
    BINS,
    PseudoLabels,
    class_probabilities,
    class_shares,
    class_thresholds,
    class_weights,
    confidence_histogram,
    expected_counts,
    expected_iou_labels,
    ignore_unsure,
    pixel_weights,
    pseudo_labels,
    relabel,
    reliability_weights,
)
from stcl.ops.warp import flip_flow, inside, warp

CLASSES, SIZE = 4, (8, 12)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_logits(size=SIZE, scale=3.0):
    return torch.randn(2, CLASSES, *size, generator=generator()) * scale


def logits_of(labels, probability):
    """Scores whose arg-max is ``labels`` with that probability."""
    share = (1 - probability) / (CLASSES - 1)
    hot = F.one_hot(labels, CLASSES).permute(0, 3, 1, 2)
    return torch.where(hot == 1, probability, share).log()


def with_confidence(labels, confidence):
    """Labels of pixels that are clearer than their labels are sure."""
    return PseudoLabels(labels, confidence, (1 + confidence) / 2)


def labels_of(logits, size, flow=None):
    view = class_probabilities(logits, size)
    return pseudo_labels(view) if flow is None else pseudo_labels(warp(view, flow), inside(flow))


def test_arg_max_and_its_probability():
    logits = random_logits()
    labels, confidence, certainty = labels_of(logits, SIZE)
    assert torch.equal(labels, logits.argmax(1))
    assert_close(confidence, logits.softmax(1).amax(1))
    assert labels.dtype == torch.int64
    assert confidence.min() >= 1 / CLASSES - 1e-6 and confidence.max() <= 1
    assert torch.equal(certainty, confidence)


def test_thresholds_apply_to_probabilities_never_to_logits():
    labels = torch.zeros(1, *SIZE, dtype=torch.long)
    logits = logits_of(labels, 0.8) + 5  # every score lies above 0.9, and scores are free of their offset
    assert (logits > 0.9).all()
    pseudo = labels_of(logits, SIZE)
    assert (ignore_unsure(pseudo, 0.9) == IGNORE).all()
    assert (ignore_unsure(pseudo, 0.7) == 0).all()
    # scaled scores keep the arg-max but not the confidence
    for scale, sure in ((1.0, 0.0), (2.0, 1.0)):
        scaled = labels_of(logits * scale, SIZE)
        assert torch.equal(scaled.labels, pseudo.labels)
        assert pixel_weights(scaled, "threshold", 0.9).mean() == sure


def test_labels_move_with_the_flow():
    """A patch of frame t-h lies where the flow t -> t-h comes from, as wide as it was."""
    labels = torch.zeros(1, *SIZE, dtype=torch.long)
    labels[:, 4:6, 6:9] = 2
    flow = torch.tensor((3.0, 1.0)).view(1, 2, 1, 1).expand(1, 2, *SIZE)
    moved = labels_of(logits_of(labels, 0.99), SIZE, flow).labels
    expected = torch.zeros(1, *SIZE, dtype=torch.long)
    expected[:, 3:5, 3:6] = 2
    expected[:, -1:], expected[:, :, -3:] = IGNORE, IGNORE
    assert torch.equal(moved, expected)


def test_without_motion_the_flow_changes_nothing():
    logits = random_logits()
    with_flow, without = labels_of(logits, SIZE, torch.zeros(2, 2, *SIZE)), labels_of(logits, SIZE)
    assert_close(with_flow, without)


def test_pixels_from_outside_have_no_label_and_no_confidence():
    flow = torch.randn(2, 2, *SIZE, generator=generator(1)) * 6
    labels, confidence, certainty = labels_of(random_logits(), SIZE, flow)
    outside = ~inside(flow)
    assert outside.any() and not outside.all()
    assert torch.equal(labels == IGNORE, outside)
    assert torch.equal(confidence == 0, outside) and torch.equal(certainty == 0, outside)


def test_probabilities_are_warped_not_labels():
    # half-way between a sure 0 and a sure 1 the teacher is unsure
    labels = torch.zeros(1, *SIZE, dtype=torch.long)
    labels[..., 6:] = 1
    flow = torch.zeros(1, 2, *SIZE)
    flow[:, 0] = 0.5
    confidence = labels_of(logits_of(labels, 0.98), SIZE, flow).confidence[0, 0, :-1]
    expected = torch.full((11,), 0.98)
    expected[5] = (0.98 + 0.02 / 3) / 2
    assert_close(confidence, expected, 1e-4)


def test_scores_are_upsampled_to_the_frame_before_warping():
    pseudo = labels_of(random_logits((2, 3)), SIZE, torch.zeros(2, 2, *SIZE))
    assert pseudo.labels.shape == pseudo.confidence.shape == (2, *SIZE)


def test_flipped_probabilities_are_warped_with_flipped_flow():
    logits = random_logits()
    flow = torch.randn(2, 2, *SIZE, generator=generator(1)) * 3
    flipped = labels_of(logits.flip(-1), SIZE, flip_flow(flow))
    there = labels_of(logits, SIZE, flow)
    assert_close(flipped.confidence.flip(-1), there.confidence, 1e-4)
    assert (flipped.labels.flip(-1) != there.labels).float().mean() < 0.02  # ties within rounding


def test_the_three_weightings():
    certainty = torch.tensor([[[0.95, 0.9], [0.2, 0.91]], [[0.1, 0.2], [0.3, 0.99]]])
    confidence = torch.tensor([[[0.95, 0.9], [0.2, 0.07]], [[0.1, 0.2], [0.3, 0.99]]])  # one label is not the likeliest
    pseudo = PseudoLabels(torch.zeros(2, 2, 2, dtype=torch.long), confidence, certainty)
    assert pixel_weights(pseudo, "none", 0.9) is None
    assert pixel_weights(pseudo, "threshold", 0.9).tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]
    share = pixel_weights(pseudo, "share", 0.9)
    assert share.shape == (2, 1, 1)
    assert share.flatten().tolist() == [0.5, 0.25]


def test_another_label_has_its_own_probability():
    probabilities = random_logits().softmax(1)
    flow = torch.randn(2, 2, *SIZE, generator=generator(1)) * 6
    pseudo, labels = pseudo_labels(probabilities, inside(flow)), torch.randint(0, CLASSES, (2, *SIZE))
    found = relabel(pseudo, probabilities, labels)
    known = pseudo.labels != IGNORE
    assert torch.equal(found.labels == IGNORE, ~known) and torch.equal(found.labels[known], labels[known])
    own = sum(probabilities[:, label] * (labels == label) for label in range(CLASSES))
    assert_close(found.confidence, own * known)
    assert torch.equal(found.certainty, pseudo.certainty)
    sure = ignore_unsure(found, 0.5)  # a label is as sure as itself, not as its pixel
    assert torch.equal(sure == IGNORE, ~known | (own <= 0.5)) and (pseudo.certainty[sure == IGNORE] > 0.5).any()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 90])
@pytest.mark.parametrize("weighting", ["none", "threshold", "share"])
def test_a_threshold_is_a_probability(threshold, weighting):
    with pytest.raises(SettingError, match="probability between 0 and 1"):
        pixel_weights(pseudo_labels(random_logits().softmax(1)), weighting, threshold)


def test_unsure_pixels_are_ignored():
    pseudo = with_confidence(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0.95, 0.9, 0.5]]]))
    assert ignore_unsure(pseudo, 0.9).tolist() == [[[0, IGNORE, IGNORE]]]
    assert torch.equal(pseudo.labels, torch.tensor([[[0, 1, 2]]]))  # the original is not changed


def test_ignored_stays_ignored_at_threshold_zero():
    flow = torch.full((1, 2, *SIZE), 100.0)
    pseudo = labels_of(random_logits()[:1], SIZE, flow)
    assert (ignore_unsure(pseudo, 0.0) == IGNORE).all()


def test_no_gradient_through_labels():
    pseudo = labels_of(random_logits().requires_grad_(), SIZE, torch.zeros(2, 2, *SIZE))
    assert not pseudo.labels.requires_grad and not pseudo.confidence.requires_grad


# ---- thresholds of classes ----


def ladder():
    """Ten pixels of class 0 at 0.055 to 0.955, four of class 1 at 0.305 to 0.605, one ignored, class 2 absent."""
    confidence = torch.cat((torch.arange(10) / 10 + 0.055, torch.arange(4) / 10 + 0.305, torch.tensor([0.999])))
    labels = torch.tensor([0] * 10 + [1] * 4 + [IGNORE])
    return with_confidence(labels.view(1, 3, 5), confidence.view(1, 3, 5))


def test_confidences_are_counted_class_by_class():
    histogram = confidence_histogram(ladder(), 3)
    assert histogram.shape == (3, BINS)
    assert histogram.sum(1).tolist() == [10, 4, 0]
    assert histogram[0].nonzero().flatten().tolist() == list(range(5, 100, 10))
    assert histogram[1].nonzero().flatten().tolist() == [30, 40, 50, 60]
    ends = with_confidence(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[0.0, 1.0]]]))
    sure = confidence_histogram(ends, 3)
    assert sure[0, 0] == sure[0, -1] == 1


@pytest.mark.parametrize(
    ("share", "highest", "thresholds", "kept"),
    [
        (0.3, 1.0, [0.75, 0.5, 0.99], [3, 2]),  # three of ten, two of four: 0.3 of four is more than one
        (0.5, 1.0, [0.55, 0.5, 0.99], [5, 2]),
        (1.0, 1.0, [0.05, 0.3, 0.99], [10, 4]),
        (0.3, 0.6, [0.6, 0.5, 0.6], [4, 2]),  # never above the highest, so more of class 0 are kept
        (0.0, 0.9, [0.9, 0.9, 0.9], [1, 0]),
    ],
)
def test_the_most_confident_share_of_each_class_is_kept(share, highest, thresholds, kept):
    found = class_thresholds(confidence_histogram(ladder(), 3), share, highest)
    assert_close(found, torch.tensor(thresholds))
    weights = class_weights(ladder(), found)
    assert weights.shape == (1, 3, 5) and weights.dtype == torch.float32
    assert [int(weights[ladder().labels == label].sum()) for label in (0, 1, IGNORE)] == [*kept, 0]


def test_thresholds_agree_with_quantiles():
    confidence = torch.rand(1, 100, 100, generator=generator()) ** 0.5
    labels = torch.randint(0, 3, (1, 100, 100), generator=generator(1))
    pseudo = with_confidence(labels, confidence)
    found = class_thresholds(confidence_histogram(pseudo, 3), 0.4, 1.0)
    for label in range(3):
        assert found[label] == pytest.approx(confidence[labels == label].quantile(0.6).item(), abs=1.1 / BINS)
        assert 0.4 <= class_weights(pseudo, found)[labels == label].mean() < 0.42


def test_thresholds_do_not_depend_on_how_many_pixels_were_seen():
    histogram = confidence_histogram(ladder(), 3)
    assert torch.equal(class_thresholds(histogram / 4, 0.3, 0.9), class_thresholds(histogram, 0.3, 0.9))


@pytest.mark.parametrize(("share", "highest"), [(1.1, 0.9), (-0.1, 0.9), (0.5, 90)])
def test_impossible_thresholds_of_classes_are_refused(share, highest):
    with pytest.raises(SettingError, match=f"not at {share} and {highest}"):
        class_thresholds(torch.ones(3, BINS), share, highest)


def test_a_class_counts_as_much_as_it_is_sure():
    labels = torch.tensor([[[0, 0, 0, 0, 1, 1, IGNORE, 2]]])
    confidence = torch.tensor([[[0.985, 0.995, 0.975, 0.5, 0.3, 0.995, 0.0, 0.2]]])
    pseudo = with_confidence(labels, confidence)
    shares = class_shares(confidence_histogram(pseudo, 4), 0.97)
    assert_close(shares, torch.tensor([0.75, 0.5, 0.0, 0.0]))  # the last class has no pixel
    weight = reliability_weights(pseudo, shares)
    assert_close(weight, torch.tensor([[[0.75, 0.75, 0.75, 0.75, 0.5, 0.5, 0.0, 0.0]]]))


# ---- labels of the highest expected IoU ----


def mean_iou(counts):
    right, labelled, present = counts
    return (right / (labelled + present - right)).mean()


def test_expected_counts_of_sure_labels_are_those_of_a_confusion_matrix():
    truth, labels = (torch.randint(0, CLASSES, (2, *SIZE), generator=generator(seed)) for seed in (1, 2))
    labels[0, 0] = IGNORE
    counts = expected_counts(F.one_hot(truth, CLASSES).permute(0, 3, 1, 2).float(), labels)
    known = labels != IGNORE
    right = torch.bincount(truth[known & (truth == labels)], minlength=CLASSES)
    both = (torch.bincount(those[known], minlength=CLASSES) for those in (labels, truth))
    assert_close(counts, torch.stack((right, *both)).float())


def test_sure_pixels_keep_their_class():
    truth = torch.randint(0, CLASSES, (2, *SIZE), generator=generator())
    sure = F.one_hot(truth, CLASSES).permute(0, 3, 1, 2).float()
    assert torch.equal(expected_iou_labels(sure, expected_counts(sure, truth)), truth)


def test_no_other_label_of_a_pixel_promises_a_higher_mean_iou():
    prior = torch.tensor((0.0, 1.0, 2.0, 3.0)).view(1, -1, 1, 1)
    probabilities = (random_logits((32, 48), scale=1.0) + prior).softmax(1)
    labels = probabilities.argmax(1)
    before = mean_iou(expected_counts(probabilities, labels))
    for _ in range(20):
        labels = expected_iou_labels(probabilities, expected_counts(probabilities, labels))
    best = mean_iou(expected_counts(probabilities, labels))
    assert best > before + 0.02
    for place in torch.randperm(labels.numel(), generator=generator())[:200]:
        for label in range(CLASSES):
            changed = labels.clone()
            changed.view(-1)[place] = label
            assert mean_iou(expected_counts(probabilities, changed)) <= best + 1e-6


def test_a_rare_class_that_is_never_the_likeliest_is_not_lost():
    probabilities = torch.zeros(1, 2, 10, 10)
    probabilities[:, 1, :1] = 0.45  # a tenth of the pixels may be of class 1
    probabilities[:, 0] = 1 - probabilities[:, 1]
    labels = probabilities.argmax(1)
    assert not labels.any()
    chosen = expected_iou_labels(probabilities, expected_counts(probabilities, labels))
    assert chosen[0, 0].all() and not chosen[0, 1:].any()


def test_a_class_that_nothing_speaks_for_is_not_chosen():
    probabilities = torch.zeros(1, 3, 4, 4)
    probabilities[:, 0] = 1
    labels = probabilities.argmax(1)
    assert not expected_iou_labels(probabilities, expected_counts(probabilities, labels)).any()
