import imagehash
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from xai_lib.data.duplicates import group_numbers, groups, looks, pairs


def picture(seed, shape=(120, 160)):
    """A smooth random image, like no other seed's."""
    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 8)
    return (image - image.min()) / np.ptp(image)


def grey(image):
    return Image.fromarray(np.round(image * 255).astype(np.uint8))


def altered(image):
    """The same picture, 10 % smaller, darker, with a caliper mark."""
    small = np.asarray(grey(image).resize((image.shape[1] * 9 // 10, image.shape[0] * 9 // 10))) / 255 * 0.9
    small[20:23, 30:33] = 1
    return small


def test_copies_are_found_and_others_kept_apart():
    images = [picture(0), picture(1), altered(picture(0)), picture(2), altered(altered(picture(0))), picture(1)]
    assert groups(images).tolist() == [0, 1, 0, 2, 0, 1]


def test_many_different_pictures_are_no_duplicates():
    assert len(set(groups([picture(seed) for seed in range(60)]))) == 60


def test_hash_is_imagehash_phash():
    images = [picture(0), picture(1)]
    bits, thumbnails = looks(images)
    assert bits.shape == (2, 64) and thumbnails.shape == (2, 1024)
    for i in range(2):
        np.testing.assert_array_equal(bits[i], imagehash.phash(grey(images[i])).hash.ravel())


def test_both_conditions_are_needed_by_hand():
    ramp = np.tile(np.arange(1024.0), (3, 1))
    bits = np.zeros((3, 64), dtype=bool)
    bits[1, :10] = True  # 10 bits from the first
    bits[2, :11] = True  # 11 bits from the first, 1 from the second
    assert pairs(bits, ramp).astype(int).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    ramp[1] *= -1  # correlation -1 with both others
    assert not pairs(bits, ramp).any()


def test_correlation_agrees_with_numpy():
    thumbnails = np.random.default_rng(0).random((6, 1024)) * np.linspace(1, 2, 6)[:, None] + np.linspace(0, 2, 1024)
    correlation = np.corrcoef(thumbnails)
    limit = float(np.median(correlation))
    expected = (correlation >= limit) & ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(pairs(np.zeros((6, 64), dtype=bool), thumbnails, correlation=limit - 1e-9), expected)


def test_groups_are_chains_numbered_by_their_first_image():
    alike = np.zeros((6, 6), dtype=bool)
    for i, j in [(1, 4), (4, 5), (0, 3)]:
        alike[i, j] = alike[j, i] = True
    assert group_numbers(alike).tolist() == [0, 1, 2, 0, 1, 1]


def test_flat_images_are_alike_to_none():
    assert groups([np.zeros((40, 40)), np.zeros((40, 40))]).tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_few_images(count):
    assert groups([picture(i) for i in range(count)]).tolist() == list(range(count))
