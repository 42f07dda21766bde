import math

import pytest
import torch
from torchmetrics.classification import JaccardIndex

from closeness import assert_close
from stcl.errors import SettingError
from stcl.ops.metrics import (
    ConfusionMatrix,
    Share,
    confusion_counts,
    iou_from_confusion,
    leave_out,
    mean_iou,
    temporal_consistency,
    video_consistency,
)


def random_maps(batch=3, classes=6, seed=0, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (batch, 20, 30), generator=generator)
    wrong = torch.rand(label.shape, generator=generator) < 0.4
    prediction = torch.where(wrong, torch.randint(0, classes, label.shape, generator=generator), label)
    return prediction, label.masked_fill(torch.rand(label.shape, generator=generator) < ignored, 255)


# ---- confusion matrix ----


def test_equals_torchmetrics_over_a_whole_set():
    ours = ConfusionMatrix(8)
    settings = {"task": "multiclass", "num_classes": 8, "ignore_index": 255}
    macro, classwise = JaccardIndex(average="macro", **settings), JaccardIndex(average="none", **settings)
    for seed in range(3):  # classes 6 and 7 are absent from labels and predictions
        prediction, label = random_maps(seed=seed)
        ours.update(prediction, label.byte())
        macro.update(prediction, label)
        classwise.update(prediction, label)
    assert ours.miou() == pytest.approx(float(macro.compute()), abs=1e-6)
    assert_close(ours.iou()[:6].float(), classwise.compute()[:6])
    assert ours.iou()[6:].isnan().all()


def test_pixels_of_ignored_classes_are_left_out():
    prediction = torch.tensor([[0, 3, 1, 2], [3, 3, 0, 1]])
    label = torch.tensor([[0, 0, 3, 255], [3, 1, 1, 1]], dtype=torch.uint8)
    assert leave_out(prediction, label, []) is label
    assert leave_out(prediction, label, [3]).tolist() == [[0, 255, 255, 255], [255, 255, 1, 1]]
    assert label[0, 1] == 0


def test_perfect_is_one_and_disjoint_is_zero():
    label = torch.tensor([[[0, 0, 1, 255]]])
    assert mean_iou(confusion_counts(label.clamp(max=1), label, 3)) == 1
    assert mean_iou(confusion_counts(torch.tensor([[[1, 1, 0, 0]]]), label, 3)) == 0


def test_a_class_that_is_only_predicted_counts_as_zero():
    counts = confusion_counts(torch.tensor([[[0, 0, 2]]]), torch.tensor([[[0, 0, 0]]]), 4)
    iou = iou_from_confusion(counts)
    assert iou[[0, 2]].tolist() == pytest.approx([2 / 3, 0])
    assert iou[[1, 3]].isnan().all()
    assert mean_iou(counts) == pytest.approx(1 / 3)


def test_one_matrix_is_not_the_mean_of_images():
    small, large = torch.zeros(1, 1, 10, dtype=torch.long), torch.zeros(1, 1, 1000, dtype=torch.long)
    matrix = ConfusionMatrix(2)
    matrix.update(small, small)
    matrix.update(large, torch.ones_like(large))
    assert matrix.iou().tolist() == pytest.approx([10 / 1010, 0])


def test_only_reported_classes_enter_the_mean():
    matrix = ConfusionMatrix(3, reported=(0, 2))
    matrix.update(torch.tensor([[[0, 0, 2, 2]]]), torch.tensor([[[0, 1, 2, 1]]]))
    assert matrix.miou() == pytest.approx(0.5)
    assert matrix.iou()[1] == 0


def test_rows_are_labels_and_columns_predictions():
    counts = confusion_counts(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[0, 0, 1]]]), 2)
    assert counts.tolist() == [[0, 2], [1, 0]]
    assert counts.dtype == torch.int64


def test_state_survives_a_round_trip():
    matrix, restored = ConfusionMatrix(6), ConfusionMatrix(6)
    matrix.update(*random_maps())
    restored.load_state_dict(matrix.state_dict())
    assert restored.miou() == matrix.miou()
    matrix.reset()
    assert matrix.counts.sum() == 0
    assert math.isnan(matrix.miou())


def test_a_prediction_outside_the_classes_is_named():
    with pytest.raises(SettingError, match="id 255 is outside the 3 classes"):
        confusion_counts(torch.tensor([[[255]]]), torch.tensor([[[0]]]), 3)


def test_nothing_is_read_back_to_the_host():
    # tensors on the meta device have no values to read
    maps = torch.empty(2, 8, 8, dtype=torch.long, device="meta")
    matrix = ConfusionMatrix(3).to("meta")
    matrix.update(maps, maps)
    flow = torch.empty(2, 2, 8, 8, device="meta")
    assert temporal_consistency(maps, maps, flow, label=maps).hits.is_meta


# ---- along the video ----


def test_a_moving_prediction_is_followed():
    generator = torch.Generator().manual_seed(0)
    previous = torch.randint(0, 5, (2, 12, 20), generator=generator)
    current = previous.roll(3, -1)  # moved 3 px to the right
    flow = torch.zeros(2, 2, 12, 20)
    flow[:, 0] = -3
    share = temporal_consistency(current, previous, flow)
    assert share.value == 1
    assert int(share.total) == 2 * 12 * 17  # three columns came from outside
    assert temporal_consistency(current, previous, torch.zeros_like(flow)).value < 0.5


def test_occluded_pixels_are_not_compared():
    previous, current = torch.zeros(1, 4, 4).long(), torch.zeros(1, 4, 4).long()
    current[:, 0] = 1
    flow = torch.zeros(1, 2, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    assert temporal_consistency(current, previous, flow, valid).value == 0.75
    valid[:, 0] = False
    assert temporal_consistency(current, previous, flow, valid).value == 1


def test_with_labels_a_constant_wrong_prediction_scores_nothing():
    constant, flow = torch.zeros(1, 4, 4).long(), torch.zeros(1, 2, 4, 4)
    label = torch.ones(1, 4, 4).byte()
    label[:, 0] = 255
    assert temporal_consistency(constant, constant, flow).value == 1
    share = temporal_consistency(constant, constant, flow, label=label)
    assert share.value == 0
    assert int(share.total) == 12
    assert temporal_consistency(constant + 1, constant + 1, flow, label=label).value == 1


def test_shares_add_up_by_pixels():
    total = Share(torch.tensor(1), torch.tensor(1)) + Share(torch.tensor(0), torch.tensor(3))
    assert total.value == 0.25
    assert math.isnan(Share(torch.tensor(0), torch.tensor(0)).value)


def test_video_consistency_of_a_perfect_and_of_a_constant_wrong_prediction():
    labels = torch.randint(0, 3, (1, 6, 8), generator=torch.Generator().manual_seed(0)).expand(5, -1, -1)
    assert video_consistency(labels, labels, 3) == 1
    assert video_consistency((labels + 1) % 3, labels, 3) == 0
    # constant class 0: right only where the label is 0
    assert video_consistency(torch.zeros_like(labels), labels, 3) == pytest.approx(
        float((labels[0] == 0).float().mean())
    )


def test_the_last_window_counts():
    labels = torch.zeros(4, 1, 1, dtype=torch.long)
    predictions = labels.clone()
    predictions[3] = 1
    assert video_consistency(predictions, labels, 3) == 0.5  # windows 0-2 and 1-3
    assert video_consistency(predictions[:3], labels[:3], 3) == 1


def test_a_flicker_inside_the_window_is_seen():
    labels = torch.zeros(3, 1, 2, dtype=torch.long)
    predictions = labels.clone()
    predictions[1, 0, 0] = 1
    assert video_consistency(predictions, labels, 3) == 0.5
    assert video_consistency(predictions, labels, 1) == pytest.approx((1 + 0.5 + 1) / 3)


def test_pixels_whose_label_changes_or_is_ignored_do_not_count():
    labels = torch.tensor([[[0, 1, 255]], [[0, 2, 255]]])
    assert video_consistency(torch.tensor([[[0, 0, 0]], [[0, 0, 0]]]), labels, 2) == 1
    assert math.isnan(video_consistency(labels, torch.full_like(labels, 255), 2))


@pytest.mark.parametrize("window", [0, 3, 8])
def test_a_window_longer_than_the_video_or_of_no_frame(window):
    with pytest.raises(SettingError, match=f"{window} frames does not fit a video of 2 frames"):
        video_consistency(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), window)
