"""A correction of where spots lie on an image, made by hand: turned over, rotated, scaled, moved; or by point pairs.

Frame of reference: affines are float64 ``(2, 3)`` and map (x, y) to (x, y) in level-0 pixels, as
:func:`napari_peka.io.registration.read_affine` has them: ``(x, y) @ affine[:, :2].T + affine[:, 2]``. A picture's y
points down, so a positive angle turns clockwise as one sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.io.registration import orientations

FloatArray = npt.NDArray[np.float64]

IDENTITY: FloatArray = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
#: what a nudge may do: farther off the spots belong to another image
MAX_MOVE_UM, MAX_SCALE = 20_000.0, 4.0


@dataclass(frozen=True)
class Nudge:
    """A correction by hand.

    Parameters
    ----------
    move_um
        By how much the spots move, (y, x) in µm: down and to the right.
    degrees
        By how much they turn about their centre, clockwise as seen.
    scale
        By how much they spread from their centre.
    orientation
        Which flip or swap of the image's frame comes first; one of those of
        :func:`napari_peka.io.registration.orientations`.

    Raises
    ------
    SectionError
        If a number is absurd.
    """

    move_um: tuple[float, float] = (0.0, 0.0)
    degrees: float = 0.0
    scale: float = 1.0
    orientation: str = "as given"

    def __post_init__(self) -> None:
        if not np.isfinite([*self.move_um, self.degrees, self.scale]).all():
            raise SectionError("a nudge needs finite numbers")
        if max(map(abs, self.move_um)) > MAX_MOVE_UM:
            raise SectionError(f"spots can be moved by up to {MAX_MOVE_UM:,.0f} µm, got {self.move_um}")
        if not 1 / MAX_SCALE <= self.scale <= MAX_SCALE:
            raise SectionError(f"spots can be scaled by {1 / MAX_SCALE:g} to {MAX_SCALE:g}, got {self.scale:g}")
        if self.orientation not in ORIENTATIONS:
            raise SectionError(f"there is no orientation {self.orientation!r}; it is one of {', '.join(ORIENTATIONS)}")

    @property
    def is_none(self) -> bool:
        """Whether nothing is changed."""
        return self == Nudge()

    def affine(self, xy: FloatArray, shape: tuple[int, int], mpp: tuple[float, float]) -> FloatArray:
        """Return the affine from where spots lie to where they are put.

        Parameters
        ----------
        xy
            The spots (x, y), level-0 px, ``(n, 2)``: they turn and spread about their centre.
        shape
            Of the image (h, w), level-0 px: it is its frame that is flipped.
        mpp
            µm per level-0 px (y, x).
        """
        first = frame_affine(self.orientation, shape)
        centre = apply(first, xy).mean(0)
        um = np.array(mpp[::-1], np.float64)  # (x, y)
        turn = np.radians(self.degrees)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        linear = self.scale * (rotation * um[None, :]) / um[:, None]  # a turn is one in µm, not in pixels
        shift = centre - linear @ centre + np.array(self.move_um[::-1]) / um
        return compose(np.column_stack([linear, shift]), first)


def apply(affine: FloatArray, xy: FloatArray) -> FloatArray:
    """Return points (x, y), ``(n, 2)``, where an affine puts them."""
    return np.asarray(xy @ affine[:, :2].T + affine[:, 2])


def compose(second: FloatArray, first: FloatArray) -> FloatArray:
    """Return the affine that does `first` and then `second`."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def frame_affine(orientation: str, shape: tuple[int, int]) -> FloatArray:
    """Return the affine of a flip or swap of an image's frame of `shape` (h, w)."""
    h, w = shape
    linear, shift = np.eye(2), np.zeros(2)
    if "swapped" in orientation:
        linear = linear[::-1].copy()
    for axis, (word, size) in enumerate((("x flipped", w), ("y flipped", h))):
        if word in orientation:
            linear[axis] *= -1
            shift[axis] = size
    return np.column_stack([linear, shift])


#: the eight of them, the given one first
ORIENTATIONS = tuple(name for name, _ in orientations(np.zeros((1, 2)), (1, 1)))
