"""How solids are painted: each function returns the colour (3, n) of n pixels before light falls on them."""

from collections.abc import Callable

import numpy as np

from stcl.twinstreets.parts import Material
from stcl.twinstreets.surface import Surface
from stcl.twinstreets.textures import lattice_hash

_GLASS = np.array([[0.20], [0.25], [0.30]], np.float32)
_REFLECTION = np.array([[0.52], [0.58], [0.64]], np.float32)
_DARK = np.array([[0.05], [0.05], [0.055]], np.float32)
_STEEL = np.array([[0.52], [0.52], [0.53]], np.float32)


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share


def _grain(surface: Surface, fine: float, coarse: float, texture: float) -> np.ndarray:
    return 1.0 + texture * (fine * surface.fine + coarse * surface.coarse)


def plain(surface: Surface, texture: float) -> np.ndarray:
    """Paint, cloth, metal."""
    return surface.color * _grain(surface, 0.12, 0.12, texture)


def bark(surface: Surface, texture: float) -> np.ndarray:
    """Tree trunks."""
    return surface.color * (1.0 + 0.35 * surface.fine)


def roof(surface: Surface, texture: float) -> np.ndarray:
    """Courses of tiles."""
    course = np.mod(surface.v * 3.0, 1.0) < 0.25
    faint = np.clip(0.12 / surface.spacing, 0.0, 1.0)
    return surface.color * _grain(surface, 0.2, 0.2, texture) * (1.0 - 0.22 * course * faint)


def facade(surface: Surface, texture: float) -> np.ndarray:
    """Walls with bays of windows, doors or shop fronts; detail = bay, storey, glass share (< 0: shops), brick."""
    bay, storey, glass, brick = surface.detail
    extent = np.where(surface.axis == 0, surface.half[2], surface.half[0])
    along = np.where(surface.axis == 0, surface.local[2], surface.local[0]) + extent
    height = surface.local[1] + surface.half[1]
    bay = 2 * extent / np.maximum(np.rint(2 * extent / bay), 1.0)
    storey = 2 * surface.half[1] / np.maximum(np.rint(2 * surface.half[1] / storey), 1.0)
    i, j = np.floor(along / bay), np.floor(height / storey)
    across, up = along / bay - i - 0.5, height / storey - j
    chance = lattice_hash(i, j, surface.seed)
    ground, shop = j < 0.5, (glass < 0) & (j < 0.5)
    wide = np.where(shop, 0.43, 0.5 * np.abs(glass))
    low, high = np.where(shop, 0.12, 0.26), np.where(shop, 0.74, 0.8)
    door = ground & ~shop & (chance < 0.25)
    low, high, wide = np.where(door, 0.0, low), np.where(door, 0.72, high), np.where(door, 0.2, wide)
    rim = np.maximum(0.09, 0.4 * surface.spacing)
    pane = (np.abs(across) < wide) & (up > low) & (up < high)
    frame = (np.abs(across) < wide + rim / bay) & (up > low - 1.4 * rim / storey) & (up < high + rim / storey) & ~pane
    bars = pane & ~door & ~shop & ((np.abs(across) < 0.03 / bay) | (np.abs(up - 0.6) < 0.02))
    wall = surface.color * _grain(surface, 0.14, 0.3, texture)
    near = np.clip(0.06 / surface.spacing, 0.0, 1.0)
    course = (np.mod(height / 0.24, 1.0) < 0.22) & (brick > 0.5)
    wall = wall * (1.0 - 0.25 * course * near) * np.where(height < 0.6, 0.78, 1.0) * np.where(up > 0.965, 0.86, 1.0)
    shine = np.clip(0.15 + 0.75 * chance * chance + 0.2 * (up - 0.5), 0.0, 1.0)
    opening = _mix(_GLASS, _REFLECTION, shine)
    curtain = (lattice_hash(j, i, surface.seed + 7) < 0.25) & ~shop & (up > 0.5)
    opening = np.where(curtain, 0.75, opening)
    opening = np.where(door, surface.second * 0.55, opening)
    color = np.where(pane, opening, np.where(frame, surface.second, wall))
    color = np.where(bars, surface.second, color)
    band = shop & (up > 0.78) & (up < 0.95)
    tint = lattice_hash(np.zeros_like(i), np.zeros_like(j) + np.arange(3)[:, None], surface.seed)
    color = np.where(band, 0.15 + 0.6 * tint, color)
    clear = np.clip(0.4 * bay / surface.spacing, 0.0, 1.0)  # far windows melt into the wall
    color = _mix(0.8 * wall, color, clear)
    return np.where(surface.axis == 1, 0.6 * wall, color)


def foliage(surface: Surface, texture: float) -> np.ndarray:
    """Leaves: dark gaps, bright tips, lighter towards the top."""
    tone = np.clip(0.5 + 0.55 * surface.fine + 0.3 * surface.coarse, 0.0, 1.0)
    return _mix(0.55 * surface.color, surface.second, tone) * (0.82 + 0.2 * surface.unit[1])


def car_body(surface: Surface, texture: float) -> np.ndarray:
    """Lower half of a car: bumpers, lamps, plates, door seams, wheel arches."""
    x, y, z = surface.unit
    end, front = surface.axis == 2, z > 0
    color = surface.color * _grain(surface, 0.03, 0.06, texture)
    wide, tall = np.abs(x), np.abs(y)
    lamp = end & (wide > 0.6) & (wide < 0.94) & (y > 0.0) & (y < 0.6)
    lamp_color = np.where(front, 0.92, np.array([[0.72], [0.06], [0.05]], np.float32))
    color = np.where(lamp, lamp_color, color)
    grille = end & front & (wide < 0.5) & (y > -0.3) & (y < 0.25)
    plate = end & (wide < 0.3) & np.where(front, (y > -0.62) & (y < -0.38), (y > -0.25) & (y < 0.1))
    seam = (surface.axis == 0) & ((np.abs(z + 0.05) < 0.012) | (np.abs(z - 0.36) < 0.012) | (np.abs(z + 0.44) < 0.012))
    axle = surface.half[2] - 0.8
    arch = np.hypot(np.abs(surface.local[2]) - axle, surface.local[1] + surface.half[1] - 0.08) < 0.42
    color = np.where(grille, _DARK, color)
    color = np.where(seam & (tall < 0.9), 0.5 * color, color)
    color = np.where((y < -0.68) | ((surface.axis == 0) & arch), 0.3 * color + 0.02, color)
    return np.where(plate, 0.85, color)


def car_cabin(surface: Surface, texture: float) -> np.ndarray:
    """Upper half of a car: windows all round, pillars and roof in the body's colour."""
    x, y, z = surface.unit
    side = surface.axis == 0
    pillar = (np.abs(z) > 0.86 - 0.18 * (y + 1.0)) | (np.abs(z + 0.06) < 0.03)
    window = np.where(side, ~pillar, np.abs(x) < 0.84) & (y > -0.85) & (y < 0.72) & (surface.axis != 1)
    glass = _mix(surface.second, _REFLECTION, np.clip(0.3 + 0.35 * y, 0.0, 0.6) * np.where(side, 0.6, 1.0))
    return np.where(window, glass, surface.color)


def wheel(surface: Surface, texture: float) -> np.ndarray:
    """Tyre and rim."""
    radius = np.hypot(surface.unit[1], surface.unit[2])
    return np.where((radius < 0.62) & (radius > 0.14), surface.second, surface.color)


def sign(surface: Surface, texture: float) -> np.ndarray:
    """Traffic signs: detail[0] is the kind as in `furniture.sign_post`, detail[1] a chance; backs are bare metal."""
    x, y, _ = surface.unit
    kind, chance = surface.detail[0], surface.detail[1]
    wide, tall = np.abs(x), np.abs(y)
    radius, blue = np.hypot(x, y), surface.color[2] > surface.color[0]
    bar = (wide < 0.5) & (tall < 0.18)
    disc = np.where(blue, (wide < 0.14) & (tall < 0.55), (radius < 0.7) & ~((chance < 0.5) & bar))
    triangle = (wide < 0.5 * (0.55 - y)) & (y > -0.68) & ~((wide < 0.08) & (y < 0.1))
    diamond = wide + tall > 0.74
    octagon = (tall < 0.22) & (wide < 0.72)
    square = (wide < 0.5) & (tall < 0.6) & ~((wide < 0.25) & (y < 0.1))
    lines = (np.mod(2.2 * y + 0.3, 1.0) < 0.45) & (wide < 0.35 + 0.4 * chance) & (tall < 0.8)
    board = lines | (wide > 0.95) | (tall > 0.9)
    kinds = [kind < 0.5, kind < 1.5, kind < 2.5, kind < 3.5, kind < 4.5]
    white = np.select(kinds, [disc, triangle, diamond, octagon, square], board)
    art = np.where(white, surface.second, surface.color)
    return np.where((surface.axis == 2) & (surface.unit[2] < 0), art, _STEEL)


def light(surface: Surface, texture: float) -> np.ndarray:
    """A signal head: a dark box, a bright rim, three lamps; detail[0] (0 red, 1 amber, 2 green) is lit."""
    x, y, z = surface.local[0], surface.unit[1], surface.unit[2]
    front = (surface.axis == 2) & (z < 0)
    color = np.where(front & ((np.abs(surface.unit[0]) > 0.8) | (np.abs(y) > 0.92)), surface.second, surface.color)
    lamps = ((0.6, (1.25, 0.12, 0.08)), (0.0, (1.25, 0.72, 0.08)), (-0.6, (0.1, 1.15, 0.55)))
    for state, (place, tint) in enumerate(lamps):
        inside = front & (x * x + ((y - place) * surface.half[1]) ** 2 < 0.19**2)
        lit = np.where(surface.detail[0] == state, 1.0, 0.16)
        color = np.where(inside, np.array(tint, np.float32)[:, None] * lit, color)
    return color


def fence(surface: Surface, texture: float) -> np.ndarray:
    """Boards and panels with seams and rails."""
    period, solid = surface.detail[0], surface.detail[1]
    seam = (np.mod(surface.local[2] / period, 1.0) < 0.06) & (solid > 0.9) & (period > 2 * surface.spacing)
    rail = np.abs(0.5 * (surface.unit[1] + 1.0) - surface.detail[3]) < 0.05
    color = surface.color * _grain(surface, 0.22, 0.15, texture)
    return color * np.where(seam, 0.55, np.where(rail, 1.12, 1.0))


def head(surface: Surface, texture: float) -> np.ndarray:
    """Face before hair."""
    return np.where((surface.unit[1] > 0.3) | (surface.unit[2] < 0.0), surface.second, surface.color)


PAINT: dict[Material, Callable[[Surface, float], np.ndarray]] = {
    Material.PLAIN: plain,
    Material.FACADE: facade,
    Material.ROOF: roof,
    Material.FOLIAGE: foliage,
    Material.CAR_BODY: car_body,
    Material.CAR_CABIN: car_cabin,
    Material.WHEEL: wheel,
    Material.SIGN: sign,
    Material.LIGHT: light,
    Material.FENCE: fence,
    Material.HEAD: head,
    Material.BARK: bark,
}
