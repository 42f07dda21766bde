"""Seamless noise tiles and how to look things up in them."""

from functools import lru_cache

import cv2
import numpy as np

from stcl.twinstreets.seeding import generator

TILE = 256  # side of a tile in texels, a power of two so that wrapping is a bit mask


@lru_cache(maxsize=4)
def noise_tile(roughness: float) -> np.ndarray:
    """(TILE, TILE) float32 fractal noise, mean 0, roughly within [-1, 1]; spectrum 1 / frequency ** roughness."""
    white = generator("noise tile").standard_normal((TILE, TILE))
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(white) / frequency**roughness
    spectrum[0, 0] = 0.0
    tile = np.fft.ifft2(spectrum).real
    tile = np.clip(tile / (2.5 * tile.std()), -1.0, 1.0).astype(np.float32)
    tile.setflags(write=False)
    return tile


def sample(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear look-up of `tile` at texel coordinates u, v (H, W), wrapping round; (H, W) float32."""
    u = u - TILE * np.floor(u * (1.0 / TILE))
    v = v - TILE * np.floor(v * (1.0 / TILE))
    return cv2.remap(tile, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def pick(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Nearest look-up for arrays of any one shape (cut-outs during tracing), wrapping round."""
    mask = TILE - 1
    return tile[np.floor(v).astype(np.int32) & mask, np.floor(u).astype(np.int32) & mask]


def lattice_hash(i: np.ndarray, j: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """A value in [0, 1) for each cell (i, j) of a grid, e.g. one shade for each window; float32."""
    mixed = i.astype(np.int64) * 73856093 ^ j.astype(np.int64) * 19349663 ^ seed.astype(np.int64) * 83492791
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed >> 8) & 1023).astype(np.float32) / 1024.0
