"""Corrections of where spots lie: properties that hold for any of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_peka.core.errors import SectionError
from napari_peka.io.nudge import IDENTITY, ORIENTATIONS, Nudge, apply, compose, frame_affine
from napari_peka.io.registration import fit_affine, orientations

MPP = (0.5, 0.7)
SHAPE = (900, 1400)
NUDGES = st.builds(
    Nudge,
    move_um=st.tuples(st.floats(-3000, 3000), st.floats(-3000, 3000)),
    degrees=st.floats(-180, 180),
    scale=st.floats(0.3, 3),
    orientation=st.sampled_from(ORIENTATIONS),
)
SPOTS = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).uniform(0, 900, (12, 2)))


def um(xy):
    return xy * np.array(MPP[::-1])


@given(NUDGES, SPOTS)
def test_distances_in_um_are_scaled_alike_in_all_directions(nudge, xy):
    moved = apply(nudge.affine(xy, SHAPE, MPP), xy)
    before = um(apply(frame_affine(nudge.orientation, SHAPE), xy))
    np.testing.assert_allclose(
        np.linalg.norm(um(moved)[:, None] - um(moved), axis=2),
        nudge.scale * np.linalg.norm(before[:, None] - before, axis=2), atol=1e-6,
    )  # fmt: skip


@given(NUDGES, SPOTS)
def test_the_centre_moves_by_what_was_said_and_no_more(nudge, xy):
    start = apply(frame_affine(nudge.orientation, SHAPE), xy).mean(0)
    moved = apply(nudge.affine(xy, SHAPE, MPP), xy).mean(0)
    np.testing.assert_allclose(um(moved - start)[::-1], nudge.move_um, atol=1e-6)


@given(NUDGES, NUDGES, SPOTS)
def test_one_after_the_other_is_one_affine(a, b, xy):
    first = a.affine(xy, SHAPE, MPP)
    second = b.affine(apply(first, xy), SHAPE, MPP)
    np.testing.assert_allclose(apply(compose(second, first), xy), apply(second, apply(first, xy)), atol=1e-6)


@given(st.floats(-180, 180), st.floats(0.3, 3), SPOTS)
def test_what_is_turned_and_scaled_back_is_where_it_was(degrees, scale, xy):
    there = Nudge(degrees=degrees, scale=scale).affine(xy, SHAPE, MPP)
    moved = apply(there, xy)
    back = Nudge(degrees=-degrees, scale=1 / scale).affine(moved, SHAPE, MPP)
    np.testing.assert_allclose(apply(back, moved), xy, atol=1e-6)


@given(NUDGES, SPOTS)
def test_three_point_pairs_say_the_same_as_the_numbers(nudge, xy):
    wanted = nudge.affine(xy, SHAPE, MPP)
    corners = np.array([[100.0, 100.0], [800.0, 150.0], [300.0, 700.0]])
    np.testing.assert_allclose(fit_affine(corners, apply(wanted, corners)).affine, wanted, atol=1e-5)


@given(SPOTS)
def test_orientations_are_those_that_are_scored(xy):
    for name, yx in orientations(xy[:, ::-1].copy(), SHAPE):
        np.testing.assert_allclose(apply(frame_affine(name, SHAPE), xy)[:, ::-1], yx)


def test_nothing_asked_changes_nothing():
    xy = np.random.default_rng(0).uniform(0, 900, (5, 2))
    assert Nudge().is_none
    np.testing.assert_allclose(Nudge().affine(xy, SHAPE, MPP), IDENTITY, atol=1e-9)
    assert len(ORIENTATIONS) == 8
    assert ORIENTATIONS[0] == "as given"


def test_a_positive_angle_turns_clockwise_as_seen():
    xy = np.array([[0.0, 0.0], [2.0, 0.0]])  # the right one of two goes down
    np.testing.assert_allclose(apply(Nudge(degrees=90).affine(xy, (9, 9), (1, 1)), xy), [[1, -1], [1, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scale": 9.0}, "scaled by 0.25 to 4"),
        ({"move_um": (1e6, 0.0)}, "up to 20,000 µm"),
        ({"degrees": float("nan")}, "finite"),
        ({"orientation": "upside down"}, "no orientation"),
    ],
)
def test_absurd_numbers_are_said(wrong, said):
    with pytest.raises(SectionError, match=said):
        Nudge(**wrong)
