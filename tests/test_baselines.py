"""Baselines find what colour and place tell, nothing else, and are plain linear maps."""

from __future__ import annotations

import numpy as np
import pytest

from napari_peka.core.errors import SettingError
from napari_peka.training import splits
from napari_peka.training.baselines import (
    BASELINES,
    COLOUR_NAMES,
    PLACE_NAMES,
    colour_features,
    fit_baselines,
    place_features,
    predict_baselines,
)
from napari_peka.training.metrics import gene_scores


def disc(radius: int = 12, pitch: float = 200.0, hole: int = 0) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    r = np.hypot(y, x)
    inside = (r <= radius) & (r >= hole)
    return np.column_stack([y[inside], x[inside]]) * pitch


def score(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(gene_scores(truth, predicted, ["pcc"])["pcc"].mean())


def test_colours_are_mean_and_sd_of_each_channel():
    tiles = np.random.default_rng(0).integers(0, 256, (130, 8, 8, 3), np.uint8)
    got = colour_features(tiles)
    assert got.shape == (130, len(COLOUR_NAMES))
    flat = tiles.reshape(130, -1, 3).astype(float)
    np.testing.assert_allclose(got, np.hstack([flat.mean(1), flat.std(1)]), rtol=1e-5)
    with pytest.raises(SettingError, match="uint8 tiles"):
        colour_features(tiles.astype(np.float32))
    with pytest.raises(SettingError, match="uint8 tiles"):
        colour_features(tiles[..., :2])


def test_place_is_read_from_positions_and_the_same_in_any_frame():
    centre = disc(hole=3)
    got = place_features(centre, ["A"] * len(centre))
    assert got.shape == (len(centre), len(PLACE_NAMES))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, place_features(centre * 0.5 + 7000, ["B"] * len(centre)), atol=1e-5)
    column = dict(zip(PLACE_NAMES, got.T))
    r = np.hypot(*centre.T) / 200
    assert column["y"].min() == -1
    assert column["y"].max() == 1
    assert column["edge distance"][r == 12].max() == 0
    ring = (r > 6.5) & (r < 8.5)
    assert column["edge distance"][ring].min() > 2
    assert column["edge distance"][(r > 2.9) & (r < 3.3)].max() <= 1, "a hole has an edge"
    assert column["density near"][ring].min() >= 1
    assert column["density around"][r == 12].max() < column["density around"][ring].min()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sections_of_few_spots_have_a_place(n):
    assert np.isfinite(place_features(disc()[:n], ["A"] * n, within=True)).all()


def test_each_baseline_finds_its_own_signal():
    rng = np.random.default_rng(1)
    centre = disc()
    n = len(centre)
    sections = ["A"] * n + ["B"] * n
    place = place_features(np.concatenate([centre, centre * [1, 0.8] + 500]), sections)
    colour = rng.normal(size=(2 * n, 6)).astype(np.float32)
    edge = np.tile(np.hypot(*centre.T) / 200, 2)
    targets = np.column_stack([colour[:, 1] * 2 - colour[:, 4], edge, rng.normal(size=2 * n)]) + 3
    train = np.array(sections) == "A"
    maps = fit_baselines(colour[train], place[train], targets[train])
    assert tuple(maps) == BASELINES
    got = predict_baselines(maps, colour[~train], place[~train])
    truth = targets[~train]
    np.testing.assert_allclose(got["train_mean"], np.tile(targets[train].mean(0), (n, 1)), rtol=1e-5)
    for name, gene in (("colour", 0), ("position", 1)):
        assert score(truth[:, [gene]], got[name][:, [gene]]) > 0.95
        others = [i for i in range(3) if i != gene]
        assert abs(score(truth[:, others], got[name][:, others])) < 0.15
    assert {m.weights.shape for m in maps.values()} == {(0, 3), (6, 3), (9, 3)}
    assert all(m.weights.dtype == m.bias.dtype == np.float32 for m in maps.values())


def test_position_within_a_section_follows_its_own_smooth_pattern():
    centre = disc()
    wave = np.sin(centre[:, 0] / 700) * np.cos(centre[:, 1] / 900)
    sections = ["A"] * len(centre) + ["B"] * len(centre)
    # the two sections have opposite patterns: one map of transferable features cannot have both
    truth = np.concatenate([wave, -wave])[:, None]
    both = np.concatenate([centre, centre])
    found = {}
    for within in (False, True):
        place = place_features(both, sections, within=within)
        fold = splits.paper(len(both), 0)[0]
        m = fit_baselines(place[fold.train], place[fold.train], truth[fold.train])["position"]
        found[within] = score(truth[fold.test], m(place[fold.test]))
    assert found[True] > 0.95
    assert found[False] < 0.5


def test_position_does_not_run_away_where_a_block_is_left_out():
    centre = disc()
    y = (np.hypot(*centre.T) / 2400)[:, None] + np.random.default_rng(0).normal(0, 0.1, (len(centre), 5))
    place = place_features(centre, ["a"] * len(centre), within=True)
    nothing = np.zeros((len(centre), 6), np.float32)
    for fold in splits.by_block(["a"] * len(centre), centre):
        maps = fit_baselines(nothing[fold.train], place[fold.train], y[fold.train])
        said = predict_baselines(maps, nothing[fold.test], place[fold.test])["position"]
        assert ((said - y[fold.test]) ** 2).mean() < 4 * y[fold.test].var()


def test_spots_without_a_tile_are_left_out_and_not_predicted():
    rng = np.random.default_rng(2)
    colour, place = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(50, 9)).astype(np.float32)
    targets = colour[:, :2] @ np.ones((2, 1))
    colour[3] = np.nan
    got = predict_baselines(fit_baselines(colour, place, targets), colour, place)
    assert np.isnan(got["colour"][:, 0]).nonzero()[0].tolist() == [3]
    assert np.isfinite(got["position"]).all()
    with pytest.raises(SettingError, match="could not be read"):
        fit_baselines(np.full((50, 6), np.nan), place, targets)
    with pytest.raises(SettingError, match="50 spots, colours of 49"):
        fit_baselines(colour[1:], place, targets)
