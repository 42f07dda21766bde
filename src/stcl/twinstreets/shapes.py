"""Where rays meet unit solids.

All functions take origins and directions in the solid's unit axes, where it fills [-1, 1] in x, y and z, as three
arrays that broadcast; they return the ray parameter of the entry, inf for a miss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stcl.twinstreets.parts import Shape
from stcl.twinstreets.textures import noise_tile, pick

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
INFINITE = np.float32(np.inf)
TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Form:
    """What a shape needs besides the unit solid; scalars for one part, arrays (n,) for n ray-part pairs."""

    half: Axes  # metres
    taper: tuple[np.ndarray, np.ndarray]
    detail: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    seed: np.ndarray
    spacing: np.ndarray  # distance between neighbouring rays at the part, in metres


def _away_from_zero(direction: np.ndarray) -> np.ndarray:
    return np.where(np.abs(direction) < TINY, TINY, direction)


def box(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """Slabs: enter the last, leave the first."""
    enter, leave = np.asarray(-INFINITE), np.asarray(INFINITE)
    for o, d in zip(origin, direction, strict=True):
        inverse = 1.0 / _away_from_zero(d)
        middle, reach = -o * inverse, np.abs(inverse)
        enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
    return np.where((enter < leave) & (enter > 0), enter, INFINITE)


def taper(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """A box whose x and z extents shrink linearly from 1 at the bottom to 1 - taper at the top."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    inverse = 1.0 / _away_from_zero(dy)
    middle, reach = -oy * inverse, np.abs(inverse)
    enter, leave = middle - reach, middle + reach
    for o, d, loss in ((ox, dx, form.taper[0]), (oz, dz, form.taper[1])):
        slant = 0.5 * loss
        for sign in (-1.0, 1.0):
            steep = _away_from_zero(sign * d + slant * dy)  # plane: sign * x + slant * y = 1 - slant
            cross = (1.0 - slant - sign * o - slant * oy) / steep
            enter = np.maximum(enter, np.where(steep < 0, cross, -INFINITE))
            leave = np.minimum(leave, np.where(steep > 0, cross, INFINITE))
    return np.where((enter < leave) & (enter > 0), enter, INFINITE)


def _ball_terms(origin: Axes, direction: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ray parameter of the point nearest to the centre, that point's squared distance, squared ray length."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    square = dx * dx + dy * dy + dz * dz
    nearest = -(ox * dx + oy * dy + oz * dz) / square
    # the miss vector itself, not |o|^2 - ..., which cancels badly in float32 for far balls
    mx, my, mz = ox + nearest * dx, oy + nearest * dy, oz + nearest * dz
    return nearest, mx * mx + my * my + mz * mz, square


def ball(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """The unit sphere."""
    nearest, miss, square = _ball_terms(origin, direction)
    enter = nearest - np.sqrt(np.maximum(1.0 - miss, 0.0) / square)
    return np.where((miss < 1.0) & (enter > 0), enter, INFINITE)


def tube(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """The mantle of the unit cylinder along y."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    square = np.maximum(dx * dx + dz * dz, TINY)
    nearest = -(ox * dx + oz * dz) / square
    mx, mz = ox + nearest * dx, oz + nearest * dz
    miss = mx * mx + mz * mz
    enter = nearest - np.sqrt(np.maximum(1.0 - miss, 0.0) / square)
    return np.where((miss < 1.0) & (enter > 0) & (np.abs(oy + enter * dy) <= 1.0), enter, INFINITE)


def _at(origin: Axes, direction: Axes, enter: np.ndarray) -> Axes:
    finite = np.where(np.isfinite(enter), enter, 0.0)
    x, y, z = (o + finite * d for o, d in zip(origin, direction, strict=True))
    return x, y, z


def panel(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """A plate across z with the outline of a traffic sign: detail[0] is 0 disc, 1 triangle, 2 diamond, 3 octagon."""
    enter = box(origin, direction, form)
    x, y, _ = _at(origin, direction, enter)
    kind, wide, high = form.detail[0], np.abs(x), np.abs(y)
    disc = wide * wide + high * high < 1.0
    triangle = wide < 0.5 * (1.05 - y)
    diamond, octagon = wide + high < 1.0, wide + high < 1.41
    inside = np.where(kind < 0.5, disc, np.where(kind < 1.5, triangle, np.where(kind < 2.5, diamond, octagon)))
    return np.where(inside, enter, INFINITE)


def picket(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """A fence along z: pickets of detail = (period in m, solid share), rails at heights detail[2:] of the whole."""
    enter = box(origin, direction, form)
    _, y, z = _at(origin, direction, enter)
    period, solid, low, high = form.detail
    height = 0.5 * (y + 1.0)
    gap = np.mod(z * form.half[2] / period, 1.0) > solid
    rail = (np.abs(height - low) < 0.05) | (np.abs(height - high) < 0.05)
    fine = period > 2.0 * form.spacing  # gaps narrower than two pixels would only flicker
    return np.where(gap & ~rail & fine, INFINITE, enter)


def crown(origin: Axes, direction: Axes, form: Form) -> np.ndarray:
    """A ball whose outline is broken by leaves; the leaves are fixed to the surface, so they move with it."""
    nearest, miss, square = _ball_terms(origin, direction)
    enter = nearest - np.sqrt(np.maximum(1.0 - miss, 0.0) / square)
    enter = np.where((miss < 1.0) & (enter > 0), enter, INFINITE)
    x, y, z = _at(origin, direction, enter)
    sideways = np.where(np.abs(x) > np.abs(z), z * form.half[2], x * form.half[0])
    leaf = pick(noise_tile(0.7), sideways * 14.0 + form.seed, y * form.half[1] * 14.0 + 0.37 * form.seed)
    return np.where(miss < 0.8 + 0.55 * leaf, enter, INFINITE)


INTERSECT: dict[Shape, Callable[[Axes, Axes, Form], np.ndarray]] = {
    Shape.BOX: box,
    Shape.TAPER: taper,
    Shape.BALL: ball,
    Shape.TUBE: tube,
    Shape.PANEL: panel,
    Shape.PICKET: picket,
    Shape.CROWN: crown,
}
