"""When two results of floating-point arithmetic count as equal, on every processor.

Processors, thread counts and libraries sum in different orders. The error that this makes is relative to the largest
terms of a sum, not to the sum itself: where terms cancel, a small value is as wrong as a large one beside it. So a
difference is measured against the largest value of the expected tensor. What must be the same bits is compared with
``torch.equal``, or with a tolerance of 0 where many tensors are compared at once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""For a few operations with sums of up to thousands of terms: a hundred rounding errors (of half precision: a few)."""

SAMPLED = 1e-4
"""For what is interpolated at positions in float32, such as a warped frame: a position a hundred pixels from the origin
is known to 1e-5 pixels, and values may change by their whole range from one pixel to the next."""

NETWORK = 1e-4
"""For scores of a whole network in float32: layers behind one another, each normalised, pass on what went before."""

GRADIENT = 1e-3
"""For gradients of a whole network in float32: twice as many layers, and sums over all pixels that nearly cancel."""


def relative_difference(found: Any, expected: Any, scale: float | None = None) -> float:
    """The largest difference of two tensors of one shape, in units of ``scale``.

    Args:
        found, expected: tensors, arrays or numbers. What is not finite must be the same in both.
        scale: the size of the numbers that were computed with; None takes the largest magnitude in ``expected``.
    """
    ours, theirs = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    if theirs.is_complex():
        ours, theirs = torch.view_as_real(ours), torch.view_as_real(theirs)
    ours, theirs = ours.double().flatten(), theirs.double().flatten()
    finite = theirs.isfinite()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    assert same[~finite].all(), "infinite or undefined numbers differ"
    ours, theirs = ours[finite], theirs[finite]
    largest = float((ours - theirs).abs().max()) if len(ours) else 0.0
    size = (float(theirs.abs().max()) if len(theirs) else 1.0) if scale is None else scale
    if largest == 0:
        return 0.0
    return largest / size if size else float("inf")


def assert_close(
    found: Any, expected: Any, tolerance: float | None = None, scale: float | None = None, where: str = ""
) -> None:
    """Every tensor differs from the expected one by at most ``tolerance`` of its largest value.

    Args:
        found, expected: tensors, arrays, numbers, None, or mappings and sequences of such. Of two tensors the types
            must agree; whole numbers must be equal.
        tolerance: None takes that of the type from :data:`TOLERANCES`; Python's numbers and arrays count as float32.
        scale: see :func:`relative_difference`; for results that are zero but for rounding.
        where: said in the message.
    """
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), f"{where}: {[*found]} instead of {[*expected]}"
        for key, value in expected.items():
            assert_close(found[key], value, tolerance, scale, f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), f"{where}: {len(found)} instead of {len(expected)}"
        for number, value in enumerate(expected):
            assert_close(found[number], value, tolerance, scale, f"{where}[{number}]")
    elif expected is None:
        assert found is None, f"{where}: {found!r} instead of None"
    else:
        if isinstance(found, Tensor) and isinstance(expected, Tensor):
            assert found.dtype == expected.dtype, f"{where}: {found.dtype} instead of {expected.dtype}"
        kind = expected.dtype.to_real() if isinstance(expected, Tensor) else torch.float32
        allowed = 0.0 if kind not in TOLERANCES else TOLERANCES[kind] if tolerance is None else tolerance
        difference = relative_difference(found, expected, scale)
        assert difference <= allowed, f"{where}: differs by {difference:.2e} of the largest value, not {allowed:.0e}"
