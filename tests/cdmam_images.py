"""A phantom drawn from the geometry alone, coarse and fast, for the tests of its readers."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

from xai_lib.cdmam.geometry import CELLS, PITCH_MM, discs

BACKGROUND = 800.0
GRID_UM = 2.5


def draw(pixel_mm=0.2, noise=3.0, contrast=1.0, margin_mm=4.0, grid=True, seed=0, shape=None, angle=0.0):
    """(H, W) float32 raw image, the plate in its middle, turned clockwise: 14 % darker per micrometre of gold."""
    h, w = shape or (round((212.1 + 2 * margin_mm) / pixel_mm), round((134.4 + 2 * margin_mm) / pixel_mm))
    y, x = np.mgrid[:h, :w]
    y, x = (y - (h - 1) / 2) * pixel_mm, (x - (w - 1) / 2) * pixel_mm
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, down = cos * x + sin * y, cos * y - sin * x
    gold = np.zeros((h, w))
    if grid:
        gold = GRID_UM * np.maximum(lines(along, down, False, pixel_mm), lines(along, down, True, pixel_mm))
    for disc in discs().itertuples():
        cy = sin * disc.along_mm + cos * disc.down_mm
        cx = cos * disc.along_mm - sin * disc.down_mm
        y0, x0 = round(cy / pixel_mm + (h - 1) / 2), round(cx / pixel_mm + (w - 1) / 2)
        n = math.ceil(disc.diameter_mm / 2 / pixel_mm) + 1
        part = np.s_[max(y0 - n, 0) : y0 + n + 1, max(x0 - n, 0) : x0 + n + 1]
        far = np.hypot(y[part] - cy, x[part] - cx)
        share = np.clip(0.5 + (disc.diameter_mm / 2 - far) / pixel_mm, 0, 1)
        share *= math.pi * (disc.diameter_mm / 2 / pixel_mm) ** 2 / max(share.sum(), 1e-9)  # the disc's own area
        gold[part] = np.maximum(gold[part], contrast * disc.thickness_um * share)
    image = gaussian_filter(BACKGROUND * np.exp(-0.15 * gold), 0.5)
    return (image + np.random.default_rng(seed).normal(0, noise, (h, w))).astype(np.float32)


def lines(along, down, swap, pixel_mm):
    """Coverage of one family of grid lines, 0.5 mm wide, where a cell lies at its side."""
    a, b = along * math.sqrt(2) / PITCH_MM + 0.5, down * math.sqrt(2) / PITCH_MM + 16
    p, q = ((b - a) / 2, (a + b) / 2) if swap else ((a + b) / 2, (b - a) / 2)  # p counts across the lines, q along them
    cells = np.pad(CELLS if swap else CELLS.T, 1)
    k, cell = np.clip(np.rint(p), 0, 16).astype(int), np.clip(np.floor(q), -1, 16).astype(int) + 1
    on = (cells[k, cell] | cells[k + 1, cell]) & (np.abs(p - 8) < 8.5)
    return on * np.clip(0.5 + (0.25 - np.abs(p - np.rint(p)) * PITCH_MM) / pixel_mm, 0, 1)
