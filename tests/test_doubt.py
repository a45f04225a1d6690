"""Intervals: they nest, hold what they promise on data like those of their calibration, and never claim more."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_peka.core.doubt import PROBABILITIES, Intervals, Likeness
from napari_peka.core.errors import SettingError
from napari_peka.models.reference import PERCENTILES, distances, reference_of
from napari_peka.training.scoring import Measured
from napari_peka.trust.conformal import calibrate, recalibrated, weighted_quantiles
from napari_peka.trust.held_out import intervals_of, spread_at, without_each
from napari_peka.workflows.folds import crossed


def sections(rng: np.random.Generator, n: int, k: int, g: int = 4, between: float = 0.0) -> tuple[np.ndarray, ...]:
    """Residuals of `k` sections of `n` spots, skewed, with a level of each section's own; and whose they are."""
    level = rng.normal(0, between, (k, 1, g)) if between else 0
    values = rng.gamma(2.0, 1.0, (k, n, g)) - 2 + level
    return values.reshape(-1, g).astype(np.float32), np.repeat([f"S{i}" for i in range(k)], n)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(0.05, 0.95), min_size=2, max_size=5, unique=True),
    st.sampled_from([None, 0.0]),
)
def test_a_wider_level_never_has_a_narrower_interval(seed, levels, floor):
    rng = np.random.default_rng(seed)
    residuals, groups = sections(rng, 40, 3)
    made = calibrate(residuals, np.ones(len(residuals)), groups, floor=floor)
    values, spread = rng.normal(1, 1, (7, 4)), 1 + rng.random(7)
    ends = [made.around(values, spread, level) for level in sorted(levels)]
    for (low, high), (lower, higher) in pairwise(ends):
        assert (lower <= low).all()
        assert (higher >= high).all()
    for low, high in ends:
        assert (low <= high).all()
        assert floor is None or (low >= floor).all()


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_new_spots_of_such_sections_are_covered_as_promised(level):
    """A binomial bound over sections that were not calibrated on."""
    rng = np.random.default_rng(1)
    residuals, groups = sections(rng, 150, 8)
    made = calibrate(residuals, np.ones(len(residuals)), groups)
    new, _ = sections(rng, 5000, 8)
    low, high = made.ends(level)
    held = ((new >= low) & (new <= high)).mean()
    # the calibration itself scatters as 1200 spots do
    sd = np.sqrt(level * (1 - level) * (1 / residuals.shape[0] + 1 / len(new)))
    assert level - 4 * sd <= held <= level + 4 * sd + 2 / 150


def test_each_tail_is_covered_for_itself():
    """A symmetric interval of skewed residuals would leave one tail out and waste the other."""
    rng = np.random.default_rng(2)
    residuals, groups = sections(rng, 400, 6)
    low, high = calibrate(residuals, np.ones(len(residuals)), groups).ends(0.9)
    new, _ = sections(rng, 5000, 6)
    assert 0.035 < (new < low).mean() < 0.065
    assert 0.035 < (new > high).mean() < 0.065


def test_a_large_section_counts_no_more_than_a_small_one():
    rng = np.random.default_rng(3)
    small, large = rng.normal(0, 1, (100, 1)), rng.normal(0, 10, (5000, 1))
    groups = np.array(["a"] * 100 + ["b"] * 5000)
    both = calibrate(np.concatenate([small, large]), np.ones(5100), groups)
    low, high = both.ends(0.5)
    held = [float(((x >= low) & (x <= high)).mean()) for x in (small, large)]
    assert np.mean(held) == pytest.approx(0.5, abs=0.03)
    assert held[0] > 0.8 > 0.2 > held[1]


def test_intervals_follow_the_spread_of_a_tile():
    rng = np.random.default_rng(4)
    spread = 1 + 4 * rng.random(4000)
    residuals = (rng.normal(0, 1, (4000, 1)) * spread[:, None]).astype(np.float32)
    made = calibrate(residuals, spread, np.repeat(["a", "b"], 2000))
    new = 1 + 4 * rng.random(4000)
    truth = rng.normal(0, 1, (4000, 1)) * new[:, None]
    low, high = made.around(np.zeros((4000, 1)), new)
    inside = (truth >= low) & (truth <= high)
    for part in (new < 2, new > 4):
        assert inside[part].mean() == pytest.approx(0.9, abs=0.03)


def test_a_model_that_knows_nothing_has_intervals_as_wide_as_the_measurements():
    """Spots are shuffled: what is predicted of them is no better than the mean."""
    rng = np.random.default_rng(5)
    truth = rng.gamma(2.0, 1.0, (600, 3)).astype(np.float32)
    shuffled = rng.permutation(truth)
    groups = np.repeat(["a", "b", "c"], 200)
    mean = shuffled.mean(0)
    made = calibrate(truth - mean, np.ones(600), groups)
    low, high = made.ends(0.9)
    marginal = np.quantile(truth, 0.95, axis=0) - np.quantile(truth, 0.05, axis=0)
    np.testing.assert_allclose(high - low, marginal, rtol=0.08)


def test_few_spots_tell_nothing_of_rare_errors():
    rng = np.random.default_rng(6)
    residuals, groups = sections(rng, 12, 2)
    made = calibrate(residuals, np.ones(24), groups)
    assert made.most < 0.95
    with pytest.raises(SettingError, match=r"calibrated for levels up to \d+%, not for 0.95"):
        made.ends(0.95)
    with pytest.raises(SettingError, match="at least 20 spots"):
        calibrate(residuals[:10], np.ones(10), groups[:10])


def test_spots_that_were_not_predicted_do_not_count():
    rng = np.random.default_rng(7)
    residuals, groups = sections(rng, 100, 2)
    holes = residuals.copy()
    holes[::7] = np.nan
    kept = np.isfinite(holes).all(1)
    a = calibrate(holes, np.ones(200), groups)
    b = calibrate(residuals[kept], np.ones(kept.sum()), groups[kept])
    np.testing.assert_array_equal(a.quantiles, b.quantiles)


def test_a_gene_of_which_nothing_is_known_has_no_interval():
    rng = np.random.default_rng(8)
    residuals, groups = sections(rng, 50, 2)
    residuals[:, 1] = np.nan
    made = calibrate(residuals, np.ones(100), groups)
    assert made.known.tolist() == [True, False, True, True]
    low, high = made.around(np.zeros(3), np.ones(3), 0.9, 1)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(25, 90), st.sampled_from(PROBABILITIES))
def test_quantiles_are_conservative(seed, n, p):
    """Less than the tail's share lies outside; with one score fewer it would be more."""
    scores = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    (found,) = weighted_quantiles(scores, np.full(n, 1 / (n + 1)), [p])
    if p >= 0.5:
        outside = (scores > found).sum(0) + 1
        share = 1 - p
    else:
        outside = (scores < found).sum(0) + 1
        share = p
    extreme = share * (n + 1) < 1
    assert (outside <= max(share * (n + 1), 1) + 1e-6).all()
    assert extreme or (outside + 1 > share * (n + 1) - 1e-6).all()


def test_measured_spots_of_a_slide_move_its_intervals_as_far_as_they_are_many():
    rng = np.random.default_rng(9)
    residuals, groups = sections(rng, 300, 4)
    made = calibrate(residuals, np.ones(len(residuals)), groups)
    shifted = lambda n: (rng.gamma(2.0, 1.0, (n, 4)) - 2 + 3).astype(np.float32)  # noqa: E731
    new = shifted(20_000)
    held, width = [], []
    for n in (0, 10, 50, 1000):
        used = recalibrated(made, shifted(n), np.ones(n)) if n else made
        low, high = used.ends(0.9)
        held.append(float(((new >= low) & (new <= high)).mean()))
        width.append(float((high - low).mean()))
        assert (np.diff(used.quantiles, axis=0) >= 0).all()
    assert held[0] < 0.6
    assert held[0] + 0.1 < held[1] < held[2], "few spots: both what they say and what the model said is held"
    assert min(held[2:]) > 0.87
    assert width[1] > width[0]
    assert width[3] == pytest.approx(width[0], rel=0.1), "many: as narrow as ever, elsewhere"


def test_spots_that_agree_with_the_calibration_change_it_little():
    rng = np.random.default_rng(10)
    residuals, groups = sections(rng, 500, 4)
    made = calibrate(residuals, np.ones(2000), groups)
    again = recalibrated(made, sections(rng, 50, 1)[0], np.ones(50))
    low, high = made.ends(0.9)
    lower, higher = again.ends(0.9)
    np.testing.assert_allclose(higher - lower, high - low, rtol=0.25)
    with pytest.raises(SettingError, match="none of the measured spots"):
        recalibrated(made, np.full((5, 4), np.nan), np.ones(5))


def test_what_a_section_is_judged_by_was_calibrated_without_it():
    rng = np.random.default_rng(11)
    parts = [rng.normal(0, s, (60, 2)) for s in (1, 1, 9)]
    crossed = without_each(parts, [None] * 3, ["a", "b", "c"], None)
    assert set(crossed) == {"a", "b", "c"}
    low, high = crossed["c"].ends(0.9)
    assert (high - low < 5).all(), "a and b are narrow"
    assert without_each(parts[:1], [None], ["a"], None) == {}
    assert intervals_of([parts[0][:5]], [None], ["a"], None) is None


def part(section: str, patient: str, fold: str, sd: float) -> Measured:
    """A held-out section of 60 spots and 2 genes, whose errors are this wide."""
    rng = np.random.default_rng(len(section) + ord(section[-1]))
    truth = rng.normal(5, sd, (60, 2)).astype(np.float32)
    ids = tuple(f"{section}-{i}" for i in range(60))
    return Measured(section, patient, fold, 0, ids, rng.uniform(0, 1, (60, 2)), truth, np.full_like(truth, 5),
                    np.ones(2), {})  # fmt: skip


def test_where_patients_were_left_out_a_section_is_judged_without_its_sisters():
    """What is promised for another patient must not know the errors of this one."""
    known = (("A1", "A", 9), ("A2", "A", 9), ("B1", "B", 1), ("C1", "C", 1))
    by_patient = crossed([part(s, p, p, sd) for s, p, sd in known], "log1p CP10K")
    by_section = crossed([part(s, p, s, sd) for s, p, sd in known], "log1p CP10K")
    assert set(by_patient) == set(by_section) == {"A1", "A2", "B1", "C1"}
    width = {name: np.ptp(np.stack(made["A1"].ends(0.9)), axis=0).mean()
             for name, made in (("patient", by_patient), ("section", by_section))}  # fmt: skip
    assert width["patient"] < 5, "of B and C alone"
    assert width["section"] > 10, "A2 is known, and no more is promised than for another section"
    only_a = crossed([part(s, p, s, sd) for s, p, sd in known[:2]], "log1p CP10K")
    assert set(only_a) == {"A1", "A2"}


def test_unlike_tiles_are_told_and_have_wider_intervals():
    rng = np.random.default_rng(12)
    x = rng.normal(size=(400, 30)).astype(np.float32)
    groups = np.repeat(["a", "b", "c", "d"], 100)
    reference = reference_of(x, groups)
    likeness = Likeness(reference[PERCENTILES].astype(float), 400)
    near, far = rng.normal(size=(200, 30)), 6 + rng.normal(size=(200, 30))
    percentile = [likeness.percentile(distances(part, reference)) for part in (near, far)]
    assert abs(np.median(percentile[0]) - 50) < 15
    assert (percentile[1] == 100).all()
    spread = [likeness.spread(distances(part, reference)) for part in (near, far)]
    assert spread[0].max() < 1.2 < spread[1].min()
    own = spread_at(x, np.arange(400) < 300, groups)
    assert own.shape == (400,)
    assert (own >= 1).all()


@pytest.mark.parametrize(
    ("probabilities", "quantiles"),
    [([0.1], [[0]]), ([0.1, 0.1], [[0], [1]]), ([0.1, 0.9], [[1], [0]]), ([0.0, 0.9], [[0], [1]]), ([0.1, 0.9], [[0]])],
)
def test_nonsense_is_refused(probabilities, quantiles):
    with pytest.raises(ValueError, match=r"probabilities|quantiles"):
        Intervals(np.array(probabilities), np.array(quantiles, np.float32))
    with pytest.raises(ValueError, match="101 numbers"):
        Likeness(np.arange(5.0), 3)
