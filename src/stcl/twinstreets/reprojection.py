"""Exact optical flow and occlusion between any two frames of a clip."""

import numpy as np

from stcl.twinstreets.camera import Pose
from stcl.twinstreets.parts import FIRST_SOLID, PartTable
from stcl.twinstreets.tracing import Geometry


def reproject(
    current: Geometry, table: PartTable, camera: Pose, rotation: np.ndarray, position: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface seen in each pixel lies for another camera and other part poses.

    With w the inverse depth and d the ray, a point of a part with motion x -> A x + b is seen along
    R_b^T (A (R_a d + w o_a) + w (b - o_b)); w = 0 is the sky, which only turns.

    Returns:
        flow (2, H, W) float32 in pixels, and the inverse depth there (H, W), negative behind the camera.
    """
    lens, before = current.lens, current.camera
    right, up = lens.rays()
    inverse = current.inverse_depth
    turn = (camera.rotation.T @ before.rotation).astype(np.float32)
    shift = (camera.rotation.T @ (before.position - camera.position)).astype(np.float32)
    seen = turn[:, 0, None, None] * right + (turn[:, 1, None] * up + turn[:, 2, None])[:, :, None]
    seen += shift[:, None, None] * inverse
    moving = np.flatnonzero(table.moving[current.part])
    if len(moving):
        rows, owner = np.unique(current.part.reshape(-1)[moving], return_inverse=True)
        carry = rotation[rows] @ np.swapaxes(current.rotation[rows], 1, 2)  # A
        offset = position[rows] - (carry @ current.position[rows][..., None])[..., 0]  # b
        turns = (camera.rotation.T @ carry @ before.rotation).astype(np.float32)
        shifts = (carry @ before.position[:, None])[..., 0] + offset - camera.position
        shifts = (shifts @ camera.rotation).astype(np.float32)
        y, x = np.divmod(moving, lens.width)
        ray = np.stack([right[x], up[y], np.ones_like(right[x])])  # (3, n)
        carried = np.einsum("nij,jn->in", turns[owner], ray) + shifts[owner].T * inverse.reshape(-1)[moving]
        seen.reshape(3, -1)[:, moving] = carried
    ahead = np.maximum(seen[2], np.float32(1e-3))
    cx, cy = lens.center
    x = np.arange(lens.width, dtype=np.float32) - np.float32(cx)
    y = np.arange(lens.height, dtype=np.float32)[:, None] - np.float32(cy)
    focal = np.float32(lens.focal)
    flow = np.stack([focal * seen[0] / ahead - x, -focal * seen[1] / ahead - y])
    return flow, inverse / np.where(seen[2] > 1e-3, seen[2], np.float32(-1e-3))


def occlusion(current: Geometry, other: Geometry, flow: np.ndarray, inverse_depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: the surface seen in a pixel is outside the other frame or hidden there.

    Judged at the nearest pixel of the other frame: it must show the same part, and unless the part is flat ground
    or the sky, the same place on it. Outlines, kerbs among them, are therefore uncertain by half a pixel and such
    pixels count as occluded.
    """
    lens = current.lens
    x = np.rint(flow[0] + np.arange(lens.width, dtype=np.float32))
    y = np.rint(flow[1] + np.arange(lens.height, dtype=np.float32)[:, None])
    outside = (x < 0) | (x > lens.width - 1) | (y < 0) | (y > lens.height - 1) | (inverse_depth < 0)
    column = np.clip(x, 0, lens.width - 1).astype(np.int64)
    row = np.clip(y, 0, lens.height - 1).astype(np.int64)
    there = row * lens.width + column
    same = other.part.reshape(-1)[there] == current.part
    # inverse depth is linear across a plane; one metre beside the camera it changes by 1 / focal a pixel
    apart = np.abs(other.inverse_depth.reshape(-1)[there] - inverse_depth) * np.float32(lens.focal) > 1.0
    return outside | ~same | (apart & (current.part >= FIRST_SOLID))
