"""The comparison that the other tests rely on."""

import numpy as np
import pytest
import torch

from closeness import assert_close, relative_difference

EXPECTED = torch.tensor([1000.0, 1e-3, 0.0])


def test_a_difference_counts_beside_the_largest_value():
    assert relative_difference(EXPECTED + 1, EXPECTED) == pytest.approx(1e-3)
    assert_close(EXPECTED + 0.005, EXPECTED)  # five times the second value
    assert_close(np.float32([1.0, 2.0]), [1.0, 2.0])
    assert_close(torch.tensor([1e-6]), torch.zeros(1), scale=1)
    assert_close({"a": (EXPECTED, None, 3)}, {"a": (EXPECTED, None, 3)})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (EXPECTED + 0.05, EXPECTED),
        (EXPECTED.clone().fill_(float("nan")), EXPECTED),
        (EXPECTED, EXPECTED.clone().fill_(float("inf"))),
        (EXPECTED.double(), EXPECTED),
        (EXPECTED[:2], EXPECTED),
        (torch.tensor([1e-20]), torch.zeros(1)),
        (torch.tensor([10_000_001]), torch.tensor([10_000_000])),
        (EXPECTED + 0.05j, EXPECTED + 0j),
        ({"a": EXPECTED}, {"a": EXPECTED, "b": EXPECTED}),
        ([EXPECTED], [EXPECTED, EXPECTED]),
        ([EXPECTED, EXPECTED + 0.05], [EXPECTED, EXPECTED]),
        (EXPECTED, None),
        (1.001, 1.0),
    ],
)
def test_what_is_not_close_is_seen(found, expected):
    with pytest.raises(AssertionError):
        assert_close(found, expected)
