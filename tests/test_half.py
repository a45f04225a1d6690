"""Products with half-precision numbers are numpy's, whatever the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from napari_peka.core.half import halves_dot

HALVES = some.arrays(
    np.float16, st.tuples(st.integers(0, 40), st.integers(1, 9)),
    elements=st.floats(width=16, allow_nan=True, allow_infinity=True, allow_subnormal=True),
)  # fmt: skip


@given(HALVES, st.data())
def test_every_half_is_itself(halves, data):
    """A weight of one on one column gives that column back, bit for bit."""
    column = data.draw(st.integers(0, halves.shape[1] - 1))
    finite = np.isfinite(halves).all(1)
    weights = np.zeros(halves.shape[1], np.float32)
    weights[column] = 1
    got = halves_dot(halves, weights)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[finite], halves[finite, column].astype(np.float32))
    assert not np.isfinite(got[~finite]).any()


@given(HALVES, st.integers(1, 3))
def test_products_are_numpys(halves, k):
    weights = np.random.default_rng(0).normal(size=(halves.shape[1], k)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        wanted = halves.astype(np.float64) @ weights.astype(np.float64)
        size = np.abs(halves.astype(np.float64)) @ np.abs(weights.astype(np.float64))
    got = halves_dot(halves, weights)
    known = np.isfinite(halves).all(1)
    assert (np.abs(got[known] - wanted[known]) <= 1e-6 * size[known] + 1e-12).all()
    assert np.isnan(got[np.isnan(halves).any(1)]).all()


@pytest.mark.parametrize("n", [0, 1, 341, 342, 5000])
def test_blocks_meet(n):
    halves = np.random.default_rng(1).normal(size=(n, 384)).astype(np.float16)
    halves[n // 3 : n // 3 + 1, 5] = np.nan
    weights = np.random.default_rng(2).normal(size=384).astype(np.float32)
    np.testing.assert_allclose(halves_dot(halves, weights), halves.astype(np.float32) @ weights, rtol=1e-4, atol=1e-4)


def test_other_numbers_and_large_weights_are_multiplied_as_they_are():
    halves = np.ones((3, 2), np.float16)
    np.testing.assert_array_equal(halves_dot(halves.astype(np.float64), np.ones(2, np.float32)), [2, 2, 2])
    np.testing.assert_array_equal(halves_dot(halves, np.full(2, 1e30, np.float32)), np.full(3, 2e30, np.float32))
    np.testing.assert_array_equal(halves_dot(halves.astype(">f2"), np.ones(2, np.float32)), [2, 2, 2])
    np.testing.assert_array_equal(halves_dot(halves[:, ::-1], np.array([1, 2], np.float32)), [3, 3, 3])
