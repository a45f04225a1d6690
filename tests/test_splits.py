"""Held-out spots are apart from training spots, each is held out once, and what cannot be split is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from napari_peka.core.errors import SettingError, UnknownName
from napari_peka.training import splits


def grid(side: int, pitch: float = 100.0, jitter: float = 0.0, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    centre = np.column_stack([y.ravel(), x.ravel()]) * pitch
    return centre + np.random.default_rng(seed).uniform(-jitter, jitter, centre.shape)


@st.composite
def tissues(draw):
    """Sections of one to three spots grids with holes, and their centres."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sections, centres = [], []
    for k in range(draw(st.integers(1, 3))):
        centre = grid(draw(st.integers(8, 14)), jitter=draw(st.sampled_from([0.0, 30.0])), seed=k)
        keep = rng.permutation(len(centre))[: int(len(centre) * draw(st.floats(0.7, 1)))]
        sections += [f"S{k}"] * len(keep)
        centres.append(centre[keep])
    return sections, np.concatenate(centres)


def nearest(sections, centre, a, b) -> float:
    """Return the least distance between spots of `a` and of `b` in the same section."""
    own = np.array(sections)
    return min(
        (
            cdist(centre[a & (own == s)], centre[b & (own == s)]).min(initial=np.inf)
            for s in set(sections)
            if (a & (own == s)).any() and (b & (own == s)).any()
        ),
        default=np.inf,
    )


@given(tissues(), st.integers(2, 6), st.sampled_from([None, 0.0, 150.0, 250.0]))
def test_blocks_are_disjoint_apart_and_test_each_spot_once(tissue, n_blocks, gap_um):
    sections, centre = tissue
    folds = splits.by_block(sections, centre, n_blocks, gap_um)
    assert np.array_equal(np.sum([f.test for f in folds], 0), np.ones(len(sections)))
    for f in folds:
        assert not (f.train & f.test).any()
        assert nearest(sections, centre, f.train, f.test) >= (gap_um or 0)
        assert not f.optimistic
        for s in set(sections):
            own = np.array(sections) == s
            assert abs((f.test & own).sum() - own.sum() / n_blocks) <= n_blocks, "blocks are of nearly equal size"


def test_the_default_gap_is_two_spot_distances():
    centre = grid(12)
    for f in splits.by_block(["S"] * 144, centre, 4):
        assert cdist(centre[f.train], centre[f.test]).min() == pytest.approx(200)
        neither = ~f.train & ~f.test
        assert cdist(centre[neither], centre[f.test]).min(1).max() < 200, "no spot is left out without need"


def test_a_block_is_one_piece():
    centre = grid(12)
    for f in splits.by_block(["S"] * 144, centre, 5):
        part = centre[f.test]
        near = cdist(part, part) < 110
        seen = near[0]
        for _ in part:
            seen = near[seen].any(0)
        assert seen.all()


@given(tissues(), st.floats(0.05, 0.5), st.integers(0, 5))
def test_validation_is_apart_and_within_the_training_rows(tissue, share, seed):
    sections, centre = tissue
    rows = centre[:, 0] < np.quantile(centre[:, 0], 0.8)
    f = splits.validation(sections, centre, rows, share, seed=seed, gap_um=150.0)
    assert not (f.train & f.test).any()
    assert rows[f.train | f.test].all()
    assert nearest(sections, centre, f.train, f.test) >= 150
    assert f.test.sum() / rows.sum() == pytest.approx(1 / round(1 / share), abs=0.08)


def test_validation_follows_its_seed():
    sections, centre = ["A"] * 100 + ["B"] * 100, np.concatenate([grid(10), grid(10)])
    rows = np.ones(200, bool)
    parts = [splits.validation(sections, centre, rows, seed=s).test for s in (0, 0, 1, 2, 3)]
    assert np.array_equal(parts[0], parts[1])
    assert any(not np.array_equal(parts[0], p) for p in parts[2:])


@given(st.integers(5, 200), st.integers(0, 10), st.integers(2, 5))
def test_the_paper_shuffles_and_says_so(n, seed, folds):
    parts = splits.paper(n, seed, folds)
    assert len(parts) == folds
    assert all(p.optimistic for p in parts)
    assert np.array_equal(np.sum([p.test for p in parts], 0), np.ones(n))
    assert all(np.array_equal(p.train, ~p.test) for p in parts)
    again = splits.paper(n, seed, folds)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(parts, again))


@pytest.mark.parametrize("split", [splits.by_patient, splits.by_section])
def test_each_group_is_held_out_once(split):
    names = ["a", "b", "a", "c", "b"]
    folds = split(names)
    assert [f.name for f in folds] == ["a", "b", "c"]
    for f in folds:
        assert f.test.tolist() == [n == f.name for n in names]
        assert f.train.tolist() == [n != f.name for n in names]


def test_named_sections_and_patients_are_held_out():
    sections, patients = ["A1", "A2", "B1", "C1"], ["A", "A", "B", "C"]
    f = splits.named(["A", "C1"], sections, patients)
    assert f.test.tolist() == [True, True, False, True]
    assert f.train.tolist() == [False, False, True, False]


def test_what_cannot_be_split_is_said():
    with pytest.raises(SettingError, match=r"one patient \(C\).*hold out section or block"):
        splits.by_patient(["C", "C"])
    with pytest.raises(SettingError, match=r"one section \(C2\).*--hold-out block"):
        splits.by_section(["C2"])
    with pytest.raises(UnknownName, match="did you mean C2"):
        splits.named(["c2"], ["C2", "C3"], ["C", "C"])
    with pytest.raises(SettingError, match="nothing to train on"):
        splits.named(["C"], ["C2", "C3"], ["C", "C"])
    with pytest.raises(SettingError, match=r"gap of 5000 µm .* nothing to train on"):
        splits.by_block(["S"] * 100, grid(10), gap_um=5000)
    with pytest.raises(SettingError, match="S has 3 spots, too few for 5 blocks"):
        splits.by_block(["S"] * 3, grid(2)[:3])
    with pytest.raises(SettingError, match="at least 2 blocks"):
        splits.by_block(["S"] * 4, grid(2), 1)
    with pytest.raises(SettingError, match="2 to 3"):
        splits.paper(3, 0)
    with pytest.raises(SettingError, match=r"above 0 and at most 0\.5"):
        splits.validation(["S"] * 4, grid(2), np.ones(4, bool), 0.9)
    with pytest.raises(SettingError, match="raise the share"):
        splits.validation(["S"] * 4, grid(2), np.ones(4, bool), 0.1)
    with pytest.raises(SettingError, match="in the training and the test part at once"):
        splits.Fold("x", np.ones(2, bool), np.ones(2, bool))
    with pytest.raises(SettingError, match="holds out no spot"):
        splits.Fold("x", np.ones(2, bool), np.zeros(2, bool))
