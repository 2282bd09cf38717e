"""Near-duplicate images: the same picture again, cropped, rescaled or with other caliper marks.

Two images belong together when their 64-bit perceptual hashes (`imagehash.phash`) differ in at most 10 bits *and* their
32 x 32 grey thumbnails correlate with at least 0.95. A group is a connected component of such pairs. Both conditions
are needed: a correlation of 0.90 alone chains different images together.
"""

from collections.abc import Iterable

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

DISTANCE = 10
CORRELATION = 0.95


def looks(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hash bits (N, 64) bool and thumbnails (N, 1024) float32 of images (H, W) in [0, 1]."""
    bits, thumbnails = [], []
    for image in images:
        grey = Image.fromarray(np.round(image * 255).astype(np.uint8))
        bits.append(imagehash.phash(grey).hash.ravel())
        thumbnails.append(np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32).ravel())
    return np.array(bits, dtype=bool).reshape(-1, 64), np.array(thumbnails, dtype=np.float32).reshape(-1, 1024)


def pairs(
    bits: np.ndarray, thumbnails: np.ndarray, distance: int = DISTANCE, correlation: float = CORRELATION
) -> np.ndarray:
    """Which two images are near-duplicates: (N, N) bool, symmetric, False on the diagonal; takes what `looks` gives."""
    signs = np.where(bits, 1.0, -1.0)
    differing = (bits.shape[1] - signs @ signs.T) / 2  # Hamming distance
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norms == 0, 1, norms)  # a flat image correlates with none
    alike = (differing <= distance) & (unit @ unit.T >= correlation)
    np.fill_diagonal(alike, False)
    return alike


def groups(images: Iterable[np.ndarray], distance: int = DISTANCE, correlation: float = CORRELATION) -> np.ndarray:
    """Group of each image, (N,) int, numbered from 0 in the order of the first image of each group.

    Args:
        images: grey images (H, W) in [0, 1], of any size.
        distance: largest number of differing bits of the 64-bit hash.
        correlation: smallest correlation of the thumbnails.
    """
    alike = pairs(*looks(images), distance=distance, correlation=correlation)
    return group_numbers(alike)


def group_numbers(alike: np.ndarray) -> np.ndarray:
    """Connected components of a pair matrix (N, N), numbered in the order of their first image."""
    _, component = connected_components(csr_array(alike), directed=False)
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=int)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number]
