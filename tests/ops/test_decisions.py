"""Labels and confidence decided in bands are those of the up-sampled scores."""

import pytest
import torch

from closeness import assert_close
from stcl.ops.decisions import decide
from stcl.ops.losses import upsample


@pytest.mark.parametrize("size", [(200, 151), (17, 40), (64, 64), (30, 8), (1, 1)])
@pytest.mark.parametrize("grid", [(16, 20), (1, 5), (30, 8)])
def test_bands_equal_the_whole(size: tuple[int, int], grid: tuple[int, int]) -> None:
    scores = torch.randn(5, *grid, generator=torch.Generator().manual_seed(1)) * 3
    labels, confidence = decide(scores, size)
    expected = upsample(scores[None], size).softmax(1)[0]
    assert labels.shape == confidence.shape == size and labels.dtype == torch.uint8
    assert_close(confidence, expected.max(0).values, 1e-4)
    chosen = expected.gather(0, labels.long()[None])[0]  # ties may fall either way
    assert_close(chosen, expected.max(0).values, 1e-4)


def test_confidence_is_made_only_if_wanted() -> None:
    scores = torch.randn(3, 8, 8)
    labels, confidence = decide(scores, (32, 32), confidence=False)
    assert confidence is None and torch.equal(labels, decide(scores, (32, 32))[0])
