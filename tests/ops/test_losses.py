import math

import pytest
import torch
import torch.nn.functional as F

from closeness import assert_close
from stcl.labels import IGNORE
from stcl.ops.losses import cross_entropy, entropy, segmentation_loss, upsample
from stcl.types import SegOutput

CLASSES, SIZE = 5, (8, 12)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_labels(ignored=0.2, dtype=torch.int64):
    labels = torch.randint(0, CLASSES, (2, *SIZE), generator=generator())
    return labels.masked_fill(torch.rand(labels.shape, generator=generator(1)) < ignored, IGNORE).to(dtype)


def random_logits(seed=2, size=SIZE):
    return torch.randn(2, CLASSES, *size, generator=generator(seed))


def perfect_logits(labels):
    return 100.0 * F.one_hot(labels.masked_fill(labels == IGNORE, 0), CLASSES).permute(0, 3, 1, 2)


def test_zero_when_perfect():
    labels = random_labels()
    logits = perfect_logits(labels)
    assert cross_entropy(logits, labels) == 0
    assert segmentation_loss(SegOutput(logits, logits, {}), labels) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_equals_torch(dtype):
    labels, logits = random_labels(dtype=dtype), random_logits()
    expected = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE)
    assert_close(cross_entropy(logits, labels), expected)


def test_equals_the_definition():
    labels, logits = random_labels(), random_logits()
    known = labels != IGNORE
    log = logits.log_softmax(1).permute(0, 2, 3, 1)[known]
    assert_close(cross_entropy(logits, labels), -log[range(len(log)), labels[known]].mean())


def test_ignored_pixels_neither_count_nor_train():
    labels, logits = random_labels(ignored=0.5), random_logits().requires_grad_()
    ignored = (labels == IGNORE).unsqueeze(1).expand_as(logits)
    loss = cross_entropy(logits, labels)
    loss.backward()
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).all()
    assert_close(cross_entropy(torch.where(ignored, 7.0, logits), labels), loss)


@pytest.mark.parametrize("weight", [None, torch.ones(2, *SIZE)])
def test_without_a_labelled_pixel_the_loss_is_zero_with_a_finite_gradient(weight):
    logits = random_logits().requires_grad_()
    loss = cross_entropy(logits, torch.full((2, *SIZE), IGNORE), weight)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_weights_scale_their_pixels():
    labels, logits = random_labels(), random_logits()
    weight = torch.rand(2, *SIZE, generator=generator(4))
    each = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    expected = (each * weight).sum() / (labels != IGNORE).sum()
    assert_close(cross_entropy(logits, labels, weight), expected)
    assert_close(cross_entropy(logits, labels, torch.ones(())), cross_entropy(logits, labels))


def test_an_unsure_batch_counts_less_than_a_sure_one():
    # one weight an image, as by the share of sure pixels: the sum of weights is not divided away
    labels, logits = random_labels(), random_logits()
    half = cross_entropy(logits, labels, torch.full((2, 1, 1), 0.5))
    assert_close(half, cross_entropy(logits, labels) / 2)


def test_scores_are_upsampled_to_the_labels_with_aligned_corners():
    labels, logits = random_labels(), random_logits(size=(3, 4))
    large = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    assert_close(cross_entropy(logits, labels), cross_entropy(large, labels))
    assert_close(upsample(logits, SIZE)[..., ::7, ::11], logits[..., :: 3 - 1, :: 4 - 1])  # corners
    assert upsample(large, SIZE) is large


def test_half_precision_scores_are_summed_in_single():
    labels, logits = random_labels(), random_logits()
    loss = cross_entropy(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert_close(loss, cross_entropy(logits.bfloat16().float(), labels))


@pytest.mark.parametrize("size", [SIZE, (3, 4), (4, 12)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_equals_torchs(size, layout, dtype):
    labels, weight = random_labels(), torch.rand(2, *SIZE, generator=generator(4))
    logits = (3 * random_logits(size=size)).to(dtype).contiguous(memory_format=layout).requires_grad_()
    large = F.interpolate(logits.float(), SIZE, mode="bilinear", align_corners=True)
    each = F.cross_entropy(large, labels, ignore_index=IGNORE, reduction="none")
    (expected,) = torch.autograd.grad(7 * (each * weight).sum() / (labels != IGNORE).sum(), logits)
    (found,) = torch.autograd.grad(7 * cross_entropy(logits, labels, weight), logits)
    assert_close(found, expected)
    assert found.dtype == dtype


def test_autocast_does_not_touch_the_loss():
    labels, logits = random_labels(), random_logits(size=(3, 4)).requires_grad_()
    expected = cross_entropy(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_entropy(logits, labels)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_nothing_of_full_size_waits_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        cross_entropy(random_logits(size=(2, 3)).requires_grad_(), random_labels())
    assert max(kept) <= 2 * CLASSES * 2 * 3


def test_auxiliary_scores_add_their_share():
    labels, main, aux = random_labels(), random_logits(), random_logits(3, (4, 6))
    expected = cross_entropy(main, labels) + 0.1 * cross_entropy(aux, labels)
    assert_close(segmentation_loss(SegOutput(main, aux, {}), labels), expected)
    for output, aux_weight in ((SegOutput(main, aux, {}), 0.0), (SegOutput(main, None, {}), 0.1)):
        alone = segmentation_loss(output, labels, aux_weight=aux_weight)
        assert_close(alone, cross_entropy(main, labels))


def test_auxiliary_scores_take_the_weights_too():
    labels, main, aux = random_labels(), random_logits(), random_logits(3)
    weight = torch.rand(2, *SIZE, generator=generator(4))
    expected = cross_entropy(main, labels, weight) + 0.5 * cross_entropy(aux, labels, weight)
    assert_close(segmentation_loss(SegOutput(main, aux, {}), labels, weight, aux_weight=0.5), expected)


def test_entropy_is_in_nats():
    uniform = torch.full((1, CLASSES, 2, 2), 1 / CLASSES)
    assert_close(entropy(uniform), torch.full((1, 2, 2), math.log(CLASSES)))
    certain = F.one_hot(torch.zeros(1, 2, 2, dtype=torch.long), CLASSES).permute(0, 3, 1, 2).float()
    assert_close(entropy(certain), torch.zeros(1, 2, 2))
    probabilities = random_logits().softmax(1)
    expected = torch.distributions.Categorical(probabilities.permute(0, 2, 3, 1)).entropy()
    assert_close(entropy(probabilities), expected)
