"""How sure a held-out correlation is: neighbouring spots are no independent ones, and baselines see the same spots."""

from __future__ import annotations

import numpy as np
import pytest

from napari_peka.training.confidence import effective_spots, interval, upper_bound

SIDE = 14
PLACES = np.stack(np.mgrid[:SIDE, :SIDE], -1).reshape(-1, 2) * 200.0
N = len(PLACES)


def maps(rng: np.random.Generator, g: int, smooth: float) -> np.ndarray:
    """Return `g` random maps ``(n, g)``, each value a mean over what lies within about `smooth` spot distances."""
    white = rng.normal(size=(N, g))
    if not smooth:
        return white
    far = np.linalg.norm(PLACES[:, None] - PLACES[None], axis=2) / 200
    return np.exp(-((far / smooth) ** 2)) @ white


def pcc(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def test_spots_without_structure_count_each():
    rng = np.random.default_rng(0)
    found = effective_spots(maps(rng, 50, 0), maps(rng, 50, 0), PLACES)
    assert np.median(found) > 0.95 * N
    assert found.max() <= N


def test_spots_of_smooth_maps_count_less_the_smoother_they_are():
    rng = np.random.default_rng(1)
    found = [float(np.median(effective_spots(maps(rng, 50, s), maps(rng, 50, s), PLACES))) for s in (0.9, 1.3, 2)]
    assert N > found[0] > found[1] > found[2]
    assert found[2] < 0.25 * N
    one = effective_spots(maps(rng, 50, 2), maps(rng, 50, 0), PLACES)
    assert np.median(one) > 0.8 * N, "structure in one of two maps alone correlates with nothing"


@pytest.mark.parametrize("smooth", [0, 1.0, 1.6])
def test_maps_that_have_nothing_to_do_with_each_other_are_found_so(smooth):
    """About 95 of 100 intervals hold 0, however smooth the maps are; as if spots were independent they would not."""
    rng = np.random.default_rng(2)
    truth, predicted = maps(rng, 600, smooth), maps(rng, 600, smooth)
    low, high = interval(pcc(truth, predicted)[None], effective_spots(truth, predicted, PLACES)[None])
    held = ((low <= 0) & (high >= 0)).mean()
    assert held > 0.9
    if smooth > 1:
        low, high = interval(pcc(truth, predicted)[None], np.full((1, 600), float(N)))
        assert ((low <= 0) & (high >= 0)).mean() < 0.75


def test_parts_that_disagree_widen_the_interval():
    effective = np.full((4, 2), 100.0)
    low, high = interval(np.array([[0.5, 0.2], [0.5, 0.8], [0.5, 0.3], [0.5, 0.7]]), effective)
    assert high[1] - low[1] > 2 * (high[0] - low[0])
    one_low, one_high = interval(np.array([[0.5, 0.5]]), effective[:1])
    assert one_high[0] - one_low[0] > high[0] - low[0]
    low, high = interval(np.array([[0.5, np.nan], [np.nan, np.nan]]), effective[:2])
    assert np.isfinite(low[0])
    assert np.isnan(low[1])


def test_a_baseline_is_compared_on_the_same_spots():
    """A little better everywhere is better, where the two say nearly the same; where they do not, it may be chance."""
    effective = np.full((4, 3), 45.0)
    model = np.full((4, 3), 0.55)
    other = np.array([[0.45, 0.45, 0.55]] * 4)
    alike = np.array([[0.96, 0.1, 0.9]] * 4)
    bound = upper_bound(model, other, alike, effective)
    assert (model[0] > bound).tolist() == [True, False, False]
    _, high = interval(other, effective)
    assert high[0] > model[0, 0], "compared as if on other spots it would not be"


def test_a_constant_baseline_is_chance():
    effective = np.full((1, 2), 50.0)
    nothing = np.full((1, 2), np.nan)
    bound = upper_bound(np.array([[0.2, 0.4]]), np.zeros((1, 2)), nothing, effective)
    assert (np.array([0.2, 0.4]) > bound).tolist() == [False, True]
    low, _ = interval(np.array([[0.2, 0.4]]), effective)
    assert (low > 0).tolist() == [False, True]


def test_how_often_a_baseline_that_is_as_good_is_taken_for_worse():
    """The model adds its own error to the truth, the baseline another of the same size: at most a few per cent."""
    rng = np.random.default_rng(3)
    truth = maps(rng, 500, 1.0)
    both = [truth + 1.2 * maps(rng, 500, 1.0) for _ in range(2)]
    scores = [pcc(truth, b)[None] for b in both]
    effective = effective_spots(truth, both[0], PLACES)[None]
    bound = upper_bound(*scores, pcc(*both)[None], effective)
    assert (scores[0][0] > bound).mean() < 0.06
