"""Random changes of training images: by hand with fixed draws, then over many draws."""

import math

import pytest
import torch

from xai_lib import augmentations
from xai_lib.augmentations import AUGMENTATIONS, mammogram, patch, roi, roi_gain, turn, turned, ultrasound, version


def draws(monkeypatch, *values):
    """Make an augmentation draw these numbers, each in [-1, 1], for every image."""
    monkeypatch.setattr(torch, "rand", lambda n, k, generator: (torch.tensor([values] * n) + 1) / 2)


def ramp(height=50, width=100):
    """(1, 1, height, width) with another value at every pixel, below 0.5."""
    return torch.arange(float(height * width)).view(1, 1, height, width) / (2 * height * width)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# all of them


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "version"])
def test_shape_range_and_generator(name):
    images = torch.rand(6, 3, 24, 24, generator=seeded(9))
    a, b, c = (AUGMENTATIONS[name](images.clone(), seeded(s)) for s in (1, 1, 2))
    assert a.shape == images.shape and float(a.min()) >= 0 and float(a.max()) <= 1
    assert torch.equal(a, b) and torch.equal(a, c) == (name == "none")
    assert not torch.equal(a[0] - images[0], a[1] - images[1]) or name == "none"  # each image has its own draw


def test_names():
    assert list(AUGMENTATIONS) == ["ultrasound", "patch", "mammogram", "roi", "roi_gain", "turn", "version", "none"]
    images = torch.rand(2, 1, 8, 8)
    assert AUGMENTATIONS["none"](images, seeded()) is images


# ultrasound: zoom, flip, column shift, row shift, gain


def test_ultrasound_by_hand(monkeypatch):
    x, generator = ramp(), torch.Generator()
    draws(monkeypatch, 0, 0, 0, 0, 0)
    assert torch.allclose(ultrasound(x, generator), x, atol=1e-6)
    draws(monkeypatch, 0, -0.3, 0, 0, 0)
    assert torch.allclose(ultrasound(x, generator), x.flip(3), atol=1e-6)
    draws(monkeypatch, 0, 1, 1, 0, 0)  # 8 % of 100 columns
    assert torch.allclose(ultrasound(x, generator)[..., :92], x[..., 8:], atol=1e-5)
    draws(monkeypatch, 0, 1, 0, -1, 0)  # 8 % of 50 rows
    assert torch.allclose(ultrasound(x, generator)[:, :, 4:], x[:, :, :46], atol=1e-5)
    draws(monkeypatch, 0, 1, 0, 0, 1)
    assert torch.allclose(ultrasound(x, generator), 1.15 * x, atol=1e-6)
    draws(monkeypatch, 1, 1, 0, 0, 0)  # 10 % more is seen: column 49.5 + 30 shows what lay at 49.5 + 33
    seen = ultrasound(x, generator)[0, 0, 20]
    assert float(seen[79] - seen[78]) == pytest.approx(1.1e-4, rel=1e-2)


def test_ultrasound_has_no_vertical_flip():
    x = torch.zeros(200, 1, 40, 40)
    x[:, :, :8, :20] = 1  # marked: top left
    out = ultrasound(x, seeded())
    halves = out.mean(3)[:, 0]  # (200, rows)
    assert (halves[:, :20].sum(1) > 5 * halves[:, 20:].sum(1)).all()
    right = (out[..., 20:].sum((1, 2, 3)) > out[..., :20].sum((1, 2, 3))).float().mean()
    assert 0.4 < float(right) < 0.6


# patches: flip across, flip down, angle


def test_patch_flips_by_hand(monkeypatch):
    x, generator = ramp(40, 40), torch.Generator()
    for values, expected in (
        ((1, 1, 0), x),
        ((-1, 1, 0), x.flip(3)),
        ((1, -1, 0), x.flip(2)),
        ((-1, -1, 0), x.flip(2, 3)),
    ):
        draws(monkeypatch, *values)
        assert torch.allclose(patch(x, generator), expected, atol=1e-6)


@pytest.mark.parametrize("across", [1, -1])
@pytest.mark.parametrize("down", [1, -1])
@pytest.mark.parametrize("share", [1, -1, 0.5])
def test_patch_rotation_by_hand(monkeypatch, across, down, share):
    """A dot 20 pixels right of the centre stays at 20 pixels, turned by 30 degrees times the draw."""
    x = torch.zeros(1, 1, 61, 61)
    x[0, 0, 29:32, 49:52] = 1
    draws(monkeypatch, across, down, share)
    out = patch(x, torch.Generator())[0, 0]
    rows, cols = torch.meshgrid(torch.arange(61.0) - 30, torch.arange(61.0) - 30, indexing="ij")
    row, col = (float((out * axis).sum() / out.sum()) for axis in (rows, cols))
    assert math.hypot(row, col) == pytest.approx(20, abs=0.1)
    assert math.degrees(math.atan2(abs(row), abs(col))) == pytest.approx(30 * abs(share), abs=0.5)
    assert (col > 0) == (across > 0)
    assert float(out.sum()) == pytest.approx(9, rel=0.05)  # neither larger nor smaller


def test_patch_turns_both_ways_and_its_corners_are_black(monkeypatch):
    x = torch.ones(200, 1, 20, 20)
    out = patch(x, seeded())
    assert float(out[:, :, 5:15, 5:15].min()) > 0.999 and float(out[:, :, 0, 0].mean()) < 0.5
    x = torch.zeros(1, 1, 61, 61)
    x[0, 0, 29:32, 49:52] = 1
    sides = []
    for share in (1, -1):
        draws(monkeypatch, 1, 1, share)
        out = patch(x, torch.Generator())[0, 0]
        sides.append(bool(out[:30].sum() > out[31:].sum()))
    assert sorted(sides) == [False, True]


# mammograms: flip, gain


def test_mammogram_by_hand(monkeypatch):
    x, generator = ramp(), torch.Generator()
    draws(monkeypatch, 1, 0)
    assert torch.equal(mammogram(x, generator), x)
    draws(monkeypatch, -1, 0)
    assert torch.equal(mammogram(x, generator), x.flip(2))
    draws(monkeypatch, 1, -1)
    assert torch.allclose(mammogram(x, generator), 0.9 * x)
    draws(monkeypatch, 1, 1)
    assert torch.allclose(mammogram(x + 0.5, generator), (1.1 * (x + 0.5)).clamp(max=1))


def test_mammogram_keeps_the_chest_wall_on_the_left():
    x = torch.zeros(200, 1, 12, 10)
    x[:, :, :4, 0] = 0.5  # marked: top left
    out = mammogram(x, seeded())
    assert (out[..., 1:] == 0).all() and (out[..., 0].sum((1, 2)) > 0).all()
    down = (out[:, 0, 8:, 0].sum(1) > 0).float().mean()
    assert 0.4 < float(down) < 0.6


def test_augmentations_draw_from_their_generator_alone():
    images, before = torch.rand(3, 8, 8, 8), torch.random.get_rng_state()
    for augment in augmentations.AUGMENTATIONS.values():
        augment(images, seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mammogram_channels_are_flipped_alike_and_have_their_own_gain():
    pairs = torch.rand(8, 1, 6, 4).expand(-1, 2, -1, -1) * 0.5  # an image twice: the channels of a pair
    out = mammogram(pairs, seeded())
    ratio = out[:, 0] / out[:, 1]
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert (ratio[:, 0, 0] != 1).all() and len(ratio[:, 0, 0].unique()) == 8


# roi: flip across, flip down, whether to rotate, angle


def image_and_mask(n=1, size=20):
    """(n, 2, size, size): noise, and a mask of half of its pixels."""
    images = torch.rand(n, 2, size, size, generator=seeded(5))
    images[:, 1] = (images[:, 1] > 0.5).float()
    return images


def test_roi_by_hand(monkeypatch):
    x, generator = image_and_mask(), torch.Generator()
    for values, wanted in (
        ((1, 1, 0.1, 0.7), x),  # no rotation: the angle does not matter
        ((-0.3, 1, 1, 0), x.flip(3)),
        ((1, -0.3, 1, 0), x.flip(2)),
        ((1, 1, -0.1, 0.5), torch.rot90(x, 1, (2, 3))),
        ((1, 1, -1, 1), x.flip(2, 3)),
    ):
        draws(monkeypatch, *values)
        assert torch.allclose(roi(x, generator), wanted, atol=1e-5)


def test_roi_keeps_masks_binary_and_moves_them_with_the_image():
    x = image_and_mask(40)
    x[:, 0] = x[:, 1]
    moved = roi(x, seeded())
    assert set(moved[:, 1].unique().tolist()) == {0, 1}
    assert ((moved[:, 0] > 0.5) == (moved[:, 1] > 0.5)).float().mean() > 0.93  # interpolated against nearest
    flipped_at_most = ((moved[:, 0] - moved[:, 1]).abs() < 1e-4).flatten(1).all(1)
    assert 10 <= int(flipped_at_most.sum()) <= 30  # half of the images are not rotated


def test_gain_is_on_the_image_alone():
    x = image_and_mask(30)
    plain, bright = roi(x, seeded()), roi_gain(x, seeded())
    assert torch.equal(plain[:, 1], bright[:, 1])
    middle = (slice(None), 0, 10, 10)
    gain = (bright[middle] / plain[middle])[bright[middle] < 1]
    assert 0.9 <= gain.min() < 0.95 and 1.05 < gain.max() <= 1.1 + 1e-6


# eight positions


def test_positions_of_a_square():
    x = image_and_mask()
    found = [turned(x, n) for n in range(8)]
    assert torch.equal(found[0], x) and torch.equal(found[4], x.flip(3)) and torch.equal(found[6], x.flip(2))
    assert torch.equal(found[1], torch.rot90(x, 1, (2, 3)))
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_turn_draws_all_positions_alike():
    x = image_and_mask(1).repeat(400, 1, 1, 1)
    moved = turn(x, seeded())
    counts = [int((moved == turned(x[:1], n)).flatten(1).all(1).sum()) for n in range(8)]
    assert sum(counts) == 400 and min(counts) > 25


def test_version_picks_what_turn_would_make():
    x = image_and_mask(12)
    positions = torch.stack([turned(x, n) for n in range(8)], 1).flatten(1, 2)
    assert torch.equal(version(positions, seeded(3)), turn(x, seeded(3)))
    with pytest.raises(ValueError, match="images: 12 channels do not hold 8 positions"):
        version(torch.rand(1, 12, 4, 4), seeded())


def test_roi_without_masks():
    assert roi(image_and_mask(3)[:, :1], seeded()).shape == (3, 1, 20, 20)
