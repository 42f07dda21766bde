"""Cars, people and riders, in their own axes: x right, y up, z the way they face; metres, origin on the ground."""

from dataclasses import dataclass

import numpy as np

from stcl.twinstreets.palettes import Color, Palette
from stcl.twinstreets.parts import Material, Part, Shape, Vector, class_id

Random = np.random.Generator


def car(random: Random, palette: Palette) -> list[Part]:
    """A saloon, a hatchback, a tall car or a van: body, cabin with windows, four wheels."""
    label, paint = class_id("car"), palette.pick("car", random)
    seed = int(random.integers(1 << 16))
    kind = random.choice(4, p=[0.35, 0.3, 0.22, 0.13])
    # length, width, height of the body's top, height of the roof, cabin length and its shift, cabin taper
    length, width, waist, roof, cabin, shift, taper = (
        (4.6, 1.78, 0.92, 1.44, 2.7, -0.25, 0.42),
        (4.0, 1.72, 0.95, 1.48, 2.7, -0.45, 0.26),
        (4.5, 1.88, 1.08, 1.72, 3.2, -0.5, 0.22),
        (5.1, 1.95, 1.20, 2.15, 4.2, -0.4, 0.12),
    )[kind]
    stretch = random.uniform(0.94, 1.06)
    length, cabin = length * stretch, cabin * stretch
    glass = (0.10, 0.13, 0.16)
    floor = 0.24
    body = Part(
        Shape.TAPER, Material.CAR_BODY, label, (0, (waist + floor) / 2, 0),
        (width / 2, (waist - floor) / 2, length / 2), paint, second=glass, taper=(0.08, 0.05), seed=seed,
    )  # fmt: skip
    house = Part(
        Shape.TAPER, Material.CAR_CABIN, label, (0, (roof + waist) / 2 - 0.02, shift),
        (width / 2 - 0.06, (roof - waist) / 2 + 0.02, cabin / 2), paint, second=glass, taper=(0.2, taper), seed=seed,
    )  # fmt: skip
    radius, axle = 0.33, length / 2 - 0.8
    wheels = [
        Part(Shape.BALL, Material.WHEEL, label, (x * (width / 2 - 0.07), radius, z * axle), (0.12, radius, radius),
             (0.05, 0.05, 0.05), second=(0.52, 0.53, 0.55))
        for x in (-1, 1) for z in (-1, 1)
    ]  # fmt: skip
    return [body, house, *wheels]


@dataclass(frozen=True)
class _Gait:
    """How a figure holds itself: hip height (m), lean forwards (rad), swing of the limbs (rad, rad/s, rad)."""

    hip: float
    lean: float
    stride: float
    rate: float
    phase: float


def person(random: Random, palette: Palette, pace: float) -> list[Part]:
    """A pedestrian; `pace` in m/s sets how legs and arms swing (0 stands still)."""
    scale = random.uniform(0.88, 1.08) if random.random() < 0.88 else random.uniform(0.6, 0.75)
    rate = 4.5 * max(abs(pace), 0.3) ** 0.5 / scale
    gait = _Gait(0.9, 0.0, min(0.42, 0.3 * abs(pace)), rate, random.uniform(0.0, 2 * np.pi))
    return _figure(random, palette, class_id("person"), scale, gait, helmet=False)


def _figure(random: Random, palette: Palette, label: int, scale: float, gait: _Gait, helmet: bool) -> list[Part]:
    """Legs, arms, torso and head."""
    cloth, trousers = palette.pick("cloth", random), palette.pick("trousers", random)
    skin, hair = palette.pick("skin", random), palette.pick("sign" if helmet else "hair", random)
    s, build = scale, scale * random.uniform(0.9, 1.15)
    hip, up, ahead = gait.hip * s, s * np.cos(gait.lean), s * np.sin(gait.lean)
    shoulder, reach = hip + 0.52 * up, 0.25 * build

    def limb(shape: Shape, joint: Vector, half: Vector, color: Color, share: float) -> Part:
        """Hangs from its joint and swings about it."""
        x, y, z = joint
        swing = (gait.stride * share, gait.rate, gait.phase)
        return Part(shape, Material.PLAIN, label, (x, y - half[1], z), half, color, swing=swing, pivot=joint)

    leg, arm = (0.075 * build, 0.5 * hip, 0.085 * build), (0.06 * build, 0.32 * s, 0.065 * build)
    parts = [limb(Shape.TUBE, (x * 0.1 * build, hip, 0.0), leg, trousers, x) for x in (-1, 1)]
    parts += [limb(Shape.BALL, (x * reach, shoulder + 0.04 * s, 0.52 * ahead), arm, cloth, -0.9 * x) for x in (-1, 1)]
    middle, trunk = (0.0, hip + 0.27 * up, 0.27 * ahead), (0.22 * build, 0.325 * s, 0.15 * build)
    parts.append(Part(Shape.BALL, Material.PLAIN, label, middle, trunk, cloth, turn=(0.0, -gait.lean, 0.0)))
    top, skull = (0.0, shoulder + 0.2 * up, 0.72 * ahead), (0.1 * s, 0.135 * s, 0.115 * s)
    parts.append(Part(Shape.BALL, Material.HEAD, label, top, skull, skin, second=hair))
    return parts


def rider(random: Random, palette: Palette, pace: float) -> list[Part]:
    """A two-wheeler and its rider, one class: SYNTHIA-Seq's raw "bicycle" is read as rider too."""
    label = class_id("rider")
    frame = palette.pick("car", random)
    motor = random.random() < 0.3
    thick, radius = (0.09, 0.31) if motor else (0.035, 0.35)
    wheels = [
        Part(Shape.BALL, Material.WHEEL, label, (0, radius, z), (thick, radius, radius), (0.06, 0.06, 0.06),
             second=(0.45, 0.46, 0.48))
        for z in (-0.52, 0.55)
    ]  # fmt: skip
    bulk = (0.13, 0.2, 0.5) if motor else (0.035, 0.17, 0.42)
    body = Part(Shape.BALL, Material.PLAIN, label, (0, 0.62, 0), bulk, frame)
    bar = Part(Shape.BOX, Material.PLAIN, label, (0, 1.02, 0.45), (0.28, 0.03, 0.03), (0.12, 0.12, 0.12))
    gait = _Gait(0.96, 0.35, 0.0 if motor else 0.32, 1.3 * abs(pace) + 2.0, random.uniform(0.0, 2 * np.pi))
    figure = _figure(random, palette, label, 0.98, gait, helmet=random.random() < 0.7)
    return [*wheels, body, bar, *figure]
