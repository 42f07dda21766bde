"""Things that stand still beside a street: houses, trees, hedges, fences, poles, signs, traffic lights.

Each function returns the parts of one object in its own axes: x right, y up, z forward, origin on the ground;
signs and lights face -z, towards the ego camera on a street that runs along z. Sizes are in metres.
"""

import numpy as np

from stcl.twinstreets.palettes import Color, Palette, brighter
from stcl.twinstreets.parts import Material, Part, Shape, Vector, class_id

Random = np.random.Generator


def house(random: Random, palette: Palette, width: float, height: float, depth: float, pitched: bool) -> list[Part]:
    """A house whose front lies at x = 0 and whose body extends to x = +depth; `width` runs along z."""
    brick = random.random() < 0.3
    wall = palette.pick("brick" if brick else "plaster", random)
    storey = random.uniform(2.8, 3.7)
    # bay width, storey height, share of a bay that is glass (negative: a shop front below), brick courses
    bay, glass = random.uniform(1.6, 3.6), random.uniform(0.3, 0.62)
    shop = -1.0 if random.random() < 0.35 and not pitched else 1.0
    building, seed = class_id("building"), int(random.integers(1 << 20))
    body = Part(
        Shape.BOX, Material.FACADE, building, (depth / 2, height / 2, 0), (depth / 2, height / 2, width / 2), wall,
        second=palette.pick("frame", random), detail=(bay, storey, shop * glass, float(brick)), seed=seed,
    )  # fmt: skip
    tiles = palette.pick("roof", random)
    if pitched:
        rise = random.uniform(2.0, 4.0)
        taper = (0.96, random.choice([0.0, 0.35]))
        shape, middle, reach = Shape.TAPER, height + rise / 2, (depth / 2 + 0.5, rise / 2, width / 2 + 0.2)
        roof = Part(shape, Material.ROOF, building, (depth / 2, middle, 0), reach, tiles, taper=taper, seed=seed)
        return [body, roof]
    ledge = (depth / 2 + 0.25, 0.25, width / 2 + 0.02)
    edge = palette.pick("frame", random) if random.random() < 0.5 else wall
    return [body, Part(Shape.BOX, Material.PLAIN, building, (depth / 2, height - 0.2, 0), ledge, edge, seed=seed)]


def tree(random: Random, palette: Palette, height: float) -> list[Part]:
    """A trunk and a crown of three to five overlapping balls."""
    leaf, vegetation = palette.pick("leaf", random), class_id("vegetation")
    stem = height * random.uniform(0.3, 0.42)
    girth = 0.022 * height + 0.02
    reach = height * random.uniform(0.26, 0.36)
    trunk = (0.0, stem * 0.6, 0.0), (girth, stem * 0.6, girth)
    parts = [Part(Shape.TUBE, Material.BARK, vegetation, *trunk, palette.pick("bark", random))]
    crown = (height - stem) / 2
    for index in range(int(random.integers(3, 6))):
        if index == 0:
            middle, half = (0.0, stem + crown, 0.0), (reach, crown, reach)
        else:
            angle, size = random.uniform(0, 2 * np.pi), random.uniform(0.55, 0.8)
            offset = reach * random.uniform(0.4, 0.7)
            up = stem + crown * random.uniform(0.5, 1.3)
            middle = (offset * np.cos(angle), up, offset * np.sin(angle))
            half = (reach * size, crown * size * 0.9, reach * size)
        parts.append(_foliage(Shape.CROWN, middle, half, leaf, random))
    return parts


def bush(random: Random, palette: Palette, size: float) -> list[Part]:
    """One ball of leaves on the ground."""
    half = (size, size * random.uniform(0.6, 1.0), size)
    return [_foliage(Shape.CROWN, (0.0, half[1] * 0.7, 0.0), half, palette.pick("leaf", random), random)]


def hedge(random: Random, palette: Palette, length: float, height: float) -> list[Part]:
    """A clipped hedge along z."""
    leaf = palette.pick("leaf", random)
    return [_foliage(Shape.BOX, (0.0, height / 2, 0.0), (0.4, height / 2, length / 2), leaf, random)]


def _foliage(shape: Shape, centre: Vector, half: Vector, leaf: Color, random: Random) -> Part:
    seed = int(random.integers(1 << 16))
    second = brighter(leaf, 1.45)
    return Part(shape, Material.FOLIAGE, class_id("vegetation"), centre, half, leaf, second=second, seed=seed)


def fence(random: Random, palette: Palette, length: float, kind: int, height: float, color: Color) -> list[Part]:
    """A fence along z; kind 0 boards with gaps, 1 railing, 2 closed panels."""
    # period of the pickets, share of it that is solid, height of the rails' centre lines
    period, solid = ((0.22, 0.8), (0.3, 0.5), (2.0, 1.0))[kind]
    shape = Shape.BOX if kind == 2 else Shape.PICKET
    detail = (period, solid, 0.12, 0.85)
    seed = int(random.integers(1 << 16))
    half, label = (0.04, height / 2, length / 2), class_id("fence")
    return [Part(shape, Material.FENCE, label, (0, height / 2, 0), half, color, detail=detail, seed=seed)]


def lamp_post(random: Random, palette: Palette, height: float, arm: float) -> list[Part]:
    """A street lamp or a bare pole (arm 0); the arm reaches towards -x or +x."""
    metal, pole = palette.pick("metal", random), class_id("pole")
    girth = random.uniform(0.1, 0.15)
    parts = [Part(Shape.TUBE, Material.PLAIN, pole, (0, height / 2, 0), (girth, height / 2, girth), metal)]
    if arm:
        half = (abs(arm) / 2, 0.06, 0.06)
        parts.append(Part(Shape.BOX, Material.PLAIN, pole, (arm / 2, height - 0.1, 0), half, metal))
        lamp = brighter(metal, 1.3)
        parts.append(Part(Shape.BOX, Material.PLAIN, pole, (arm, height - 0.15, 0), (0.35, 0.09, 0.16), lamp))
    return parts


def sign_post(random: Random, palette: Palette, kind: int, facing: float) -> list[Part]:
    """A traffic sign on a pole. kind: 0 disc, 1 triangle, 2 diamond, 3 octagon, 4 board, 5 large direction board."""
    metal, label = palette.pick("metal", random), class_id("sign")
    size = random.uniform(0.42, 0.54)
    half = {4: (size, size, 0.03), 5: (1.3, 0.6, 0.05)}.get(kind, (size, size, 0.03))
    height = random.uniform(1.8, 2.4) + half[1] if kind < 5 else random.uniform(2.3, 3.0)
    tint = palette.styled(((0.80, 0.07, 0.07), (0.80, 0.07, 0.07), (0.93, 0.74, 0.06), (0.78, 0.05, 0.06),
                           (0.06, 0.24, 0.68), (0.06, 0.28, 0.62))[kind])  # fmt: skip
    if kind == 0 and random.random() < 0.4:
        tint = palette.styled((0.06, 0.24, 0.68))
    if kind == 5 and random.random() < 0.4:
        tint = palette.styled((0.05, 0.42, 0.25))
    white = (0.93, 0.93, 0.92)
    shape = Shape.BOX if kind >= 4 else Shape.PANEL
    turn = (facing, 0.0, 0.0)
    detail = (float(kind), random.random(), 0.0, 0.0)
    front = -0.1 if abs(facing) < 1.5 else 0.1
    plate = Part(shape, Material.SIGN, label, (0, height, front), half, tint, second=white, detail=detail, turn=turn)
    top = height + half[1] * 0.8
    stands = (-0.8, 0.8) if kind == 5 else (0.0,)
    pole = class_id("pole")
    posts = [Part(Shape.TUBE, Material.PLAIN, pole, (x, top / 2, 0), (0.07, top / 2, 0.07), metal) for x in stands]
    return [*posts, plate]


def traffic_light(random: Random, palette: Palette, arm: float, state: int) -> list[Part]:
    """A signal on a pole, and a second one above the road where `arm` (m, signed along x) is not 0."""
    metal, pole, label = palette.pick("metal", random), class_id("pole"), class_id("light")
    height = 6.0 if arm else 3.7
    rim = palette.styled((0.92, 0.74, 0.10)) if random.random() < 0.5 else (0.85, 0.85, 0.83)

    def head(x: float, y: float) -> Part:
        seed = int(random.integers(1 << 16))
        half, detail = (0.27, 0.67, 0.17), (float(state), 0.0, 0.0, 0.0)
        dark = (0.07, 0.08, 0.08)
        return Part(Shape.BOX, Material.LIGHT, label, (x, y, -0.22), half, dark, second=rim, detail=detail, seed=seed)

    parts = [Part(Shape.TUBE, Material.PLAIN, pole, (0, height / 2, 0), (0.1, height / 2, 0.1), metal), head(0.0, 3.0)]
    if arm:
        half = (abs(arm) / 2, 0.08, 0.08)
        parts.append(Part(Shape.BOX, Material.PLAIN, pole, (arm / 2, height - 0.2, 0), half, metal))
        parts.append(head(arm, height - 0.4))
    return parts
