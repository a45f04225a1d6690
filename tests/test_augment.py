"""Augmentation: what is changed, what is not, and that each draw can be made again."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from napari_peka.training.augment import Augment, Colours, dihedral, recolour


def tiles(n=3, s=8, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, s, s, 3), dtype=np.uint8))


def test_dihedral_makes_the_eight_images_of_a_square():
    one = tiles(1)
    images = [dihedral(one, np.array([k]))[0].numpy() for k in range(8)]
    assert len({i.tobytes() for i in images}) == 8
    for k in range(8):
        by_hand = np.rot90(one[0].numpy()[:, ::-1] if k >= 4 else one[0].numpy(), k % 4)
        np.testing.assert_array_equal(images[k], by_hand)


def test_each_tile_is_turned_by_its_own_number():
    many = tiles(16)
    which = np.arange(16) % 8
    out = dihedral(many, which)
    for i in range(16):
        assert torch.equal(out[i], dihedral(many[i : i + 1], which[i : i + 1])[0])


def test_no_change_of_colours_changes_nothing():
    n = 4
    same = Colours(np.ones((n, 3)), np.zeros((n, 3)), np.ones(n), np.ones(n))
    assert (recolour(tiles(n), same).int() - tiles(n).int()).abs().max() <= 1


def test_more_haematoxylin_is_darker_in_red_first():
    # skimage knows the stains: a tile of pure haematoxylin, doubled, has twice the density
    from skimage.color import combine_stains, hed_from_rgb, rgb_from_hed, separate_stains

    stains = np.zeros((1, 8, 8, 3))
    stains[..., 0] = 0.05
    rgb = combine_stains(stains, rgb_from_hed)
    tile = torch.from_numpy((rgb * 255).round().astype(np.uint8))
    twice = recolour(tile, Colours(np.array([[2.0, 1, 1]]), np.zeros((1, 3)), np.ones(1), np.ones(1)))
    before, after = (separate_stains(t.numpy() / 255, hed_from_rgb)[..., 0].mean() for t in (tile, twice))
    assert after == pytest.approx(2 * before, rel=0.05)


def test_brightness_and_contrast_by_hand():
    flat = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    ones, none = np.ones((2, 3)), np.zeros((2, 3))
    brighter = recolour(flat, Colours(ones, none, np.array([1.5, 0.5]), np.ones(2)))
    assert brighter[0].unique().tolist() == [150]
    assert brighter[1].unique().tolist() == [50]
    assert recolour(flat, Colours(ones, none, np.ones(2), np.array([2.0, 0.2]))).unique().tolist() == [100]


def test_a_draw_can_be_made_again_and_another_differs():
    augment = Augment(stain=0.3, light=0.2)
    one, again = (augment(tiles(8), np.random.default_rng([1, 2])) for _ in range(2))
    other = augment(tiles(8), np.random.default_rng([1, 3]))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8


def test_nothing_is_changed_when_nothing_is_asked_for():
    assert torch.equal(Augment(False, 0, 0)(tiles(), np.random.default_rng(0)), tiles())
