"""What methods remember of features and labels: prototypes, confidences, how well each class does."""

import pytest
import torch

from closeness import assert_close
from stcl.labels import IGNORE
from stcl.methods.memory import ConfidenceMemory, ExpectedIou, PrototypeBank
from stcl.ops.align import Centroids
from stcl.ops.pseudo_labels import (
    PseudoLabels,
    class_thresholds,
    confidence_histogram,
    expected_counts,
    expected_iou_labels,
    pseudo_labels,
)

# ---- prototypes ----


def centroids(value, present):
    present = torch.tensor(present, dtype=torch.bool)
    return Centroids(torch.full((len(present), 2), float(value)) * present.unsqueeze(1), present)


def test_a_prototype_starts_at_its_first_centroid_and_then_moves_slowly():
    bank = PrototypeBank(3, 2, momentum=0.9)
    bank.update(centroids(4, [1, 0, 0]))
    mean, present = bank.update(centroids(8, [1, 1, 0]))
    assert_close(mean, torch.tensor([[4.4, 4.4], [8, 8], [0, 0]]))
    assert present.tolist() == [True, True, False]


def test_an_absent_class_keeps_its_prototype():
    bank = PrototypeBank(3, 2)
    bank.update(centroids(4, [1, 1, 0]))
    mean, present = bank.update(centroids(8, [0, 0, 1]))
    assert mean.tolist() == [[4, 4], [4, 4], [8, 8]]
    assert present.all()


def test_prototypes_carry_no_gradient_and_are_copies():
    bank = PrototypeBank(3, 2)
    fresh = Centroids(torch.ones(3, 2, requires_grad=True), torch.ones(3, dtype=torch.bool))
    mean, present = bank.update(fresh)
    bank.update(centroids(8, [1, 1, 1]))
    assert not mean.requires_grad
    assert (mean == 1).all() and present.all()


def test_prototypes_are_saved(round_trip):
    bank = PrototypeBank(3, 2)
    bank.update(centroids(4, [1, 0, 1]))
    other = round_trip(bank, PrototypeBank(3, 2))
    assert_close(other.update(centroids(6, [1, 1, 0])), bank.update(centroids(6, [1, 1, 0])))


# ---- confidences ----


def labelled(*confidences):
    """One row of pixels for each class, so confident; None: the class is absent."""
    rows = [torch.full((1, 1, 10), IGNORE if value is None else label) for label, value in enumerate(confidences)]
    values = [torch.full((1, 1, 10), value or 0.0) for value in confidences]
    return PseudoLabels(torch.cat(rows, 1), torch.cat(values, 1), torch.ones(1, len(values), 10))


def test_the_first_confidences_count_alone():
    memory, pseudo = ConfidenceMemory(3), labelled(0.805, 0.505, None)
    assert memory.thresholds(0.5, 0.9).tolist() == pytest.approx([0.9] * 3)  # nothing is known yet
    memory.update(pseudo)
    expected = class_thresholds(confidence_histogram(pseudo, 3), 0.5, 0.9)
    assert_close(memory.thresholds(0.5, 0.9), expected)
    assert_close(expected, torch.tensor([0.8, 0.5, 0.9]))


def test_confidences_follow_slowly_and_absent_classes_keep_theirs():
    memory = ConfidenceMemory(2, momentum=0.9)
    for _ in range(20):
        memory.update(labelled(0.305, 0.305))
    for _ in range(5):  # of 1 - 0.9^20 = 0.88 before, 0.9^5 = 0.59 is left: more than the new 0.41
        memory.update(labelled(0.705, None))
    assert_close(memory.thresholds(0.5, 0.9), torch.tensor([0.3, 0.3]))
    for _ in range(2):
        memory.update(labelled(0.705, None))
    assert_close(memory.thresholds(0.5, 0.9), torch.tensor([0.7, 0.3]))


def test_confidences_are_saved(round_trip):
    memory = ConfidenceMemory(2)
    memory.update(labelled(0.6, 0.4))
    other = round_trip(memory, ConfidenceMemory(2))
    assert memory.histogram.any() and torch.equal(other.histogram, memory.histogram)


# ---- which labels promise the highest IoU ----


def doubtful(rare):
    """Probabilities of two classes: in its first row class 1 has the probability ``rare``."""
    probabilities = torch.zeros(1, 2, 10, 10)
    probabilities[:, 1, 0] = rare
    probabilities[:, 0] = 1 - probabilities[:, 1]
    return probabilities, pseudo_labels(probabilities)


def test_the_first_labels_are_chosen_by_their_own_counts():
    memory, (probabilities, pseudo) = ExpectedIou(2), doubtful(0.45)
    chosen = memory.choose(probabilities, pseudo)
    assert torch.equal(chosen.labels, expected_iou_labels(probabilities, expected_counts(probabilities, pseudo.labels)))
    assert chosen.labels[0, 0].all() and torch.equal(chosen.certainty, pseudo.certainty)
    assert_close(chosen.confidence[0, 0], torch.full((10,), 0.45))  # its own, not the likeliest's
    assert_close(memory.counts, expected_counts(probabilities, chosen.labels))


def test_later_labels_are_chosen_by_what_has_been_seen():
    memory = ExpectedIou(2, momentum=0.5)
    memory.choose(*doubtful(0.9))
    before = memory.counts.clone()
    probabilities, pseudo = doubtful(0.45)  # class 1 does well, J = 0.9: only sure pixels help it
    chosen = memory.choose(probabilities, pseudo)
    assert torch.equal(chosen.labels, expected_iou_labels(probabilities, before)) and not chosen.labels.any()
    assert_close(memory.counts, (before + expected_counts(probabilities, chosen.labels)) / 2)


def test_pixels_without_a_label_stay_without():
    probabilities, pseudo = doubtful(0.45)
    pseudo.labels[0, 0, :3] = IGNORE
    memory = ExpectedIou(2)
    chosen = memory.choose(probabilities, pseudo).labels
    assert (chosen[0, 0, :3] == IGNORE).all() and chosen[0, 0, 3:].all()
    assert memory.counts[1].sum() == 97


def test_counts_are_saved(round_trip):
    memory = ExpectedIou(2)
    memory.choose(*doubtful(0.45))
    other = round_trip(memory, ExpectedIou(2))
    assert memory.counts.any() and torch.equal(other.counts, memory.counts)
