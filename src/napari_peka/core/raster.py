"""A map on a slide with a value a raster pixel.

Frame of reference: as in :mod:`napari_peka.core.geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Raster:
    """A 2-D map on the slide: tissue mask and heatmap alike.

    Parameters
    ----------
    data
        bool or float32, shape ``(h, w)``; NaN where there is nothing.
    scale_yx
        Level-0 pixels per raster pixel (y, x).
    origin_yx
        Level-0 position (y, x) of the upper left *edge* of the first raster pixel.
    units
        What the values are, in words.
    """

    data: npt.NDArray[np.bool_] | npt.NDArray[np.float32]
    scale_yx: tuple[float, float]
    origin_yx: tuple[float, float] = (0.0, 0.0)
    units: str = ""

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or self.data.dtype not in (np.bool_, np.float32):
            raise ValueError(f"a raster is 2-D, bool or float32, got {self.data.ndim}-D {self.data.dtype}")
        if min(self.scale_yx) <= 0:
            raise ValueError(f"a raster's scale must be positive, got {self.scale_yx}")

    def place_um(self, mpp: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return a pixel's size and the centre of the first one, both (y, x) in µm.

        In the frame of images that say where their pixels' centres are (napari, OME-Zarr): the centre of the slide's
        first level-0 pixel is at 0 µm.

        Parameters
        ----------
        mpp
            µm per level-0 pixel (y, x).
        """
        step, origin, size = (np.array(a, np.float64) for a in (self.scale_yx, self.origin_yx, mpp))
        scale, first = step * size, (origin + step / 2 - 0.5) * size
        return (float(scale[0]), float(scale[1])), (float(first[0]), float(first[1]))

    def fraction(self, rects_yxhw: FloatArray) -> FloatArray:
        """Return the mean of the mask over each rectangle; what lies outside the mask counts as 0.

        Exact to sub-pixels: an integral image is interpolated at the edges.

        Parameters
        ----------
        rects_yxhw
            Level-0 rectangles, float64 ``(n, 4)``.
        """
        h, w = self.data.shape
        integral = np.zeros((h + 1, w + 1))
        np.cumsum(np.cumsum(np.nan_to_num(self.data.astype(np.float64)), 0), 1, out=integral[1:, 1:])

        def at(y: FloatArray, x: FloatArray) -> FloatArray:
            y = np.clip((y - self.origin_yx[0]) / self.scale_yx[0], 0, h)
            x = np.clip((x - self.origin_yx[1]) / self.scale_yx[1], 0, w)
            iy, ix = np.minimum(y.astype(int), h - 1), np.minimum(x.astype(int), w - 1)
            fy, fx = y - iy, x - ix
            top = integral[iy, ix] * (1 - fx) + integral[iy, ix + 1] * fx
            low = integral[iy + 1, ix] * (1 - fx) + integral[iy + 1, ix + 1] * fx
            return np.asarray(top * (1 - fy) + low * fy)

        y, x, rh, rw = np.asarray(rects_yxhw, np.float64).reshape(-1, 4).T
        total = at(y + rh, x + rw) - at(y, x + rw) - at(y + rh, x) + at(y, x)
        return np.asarray(total * self.scale_yx[0] * self.scale_yx[1] / (rh * rw))
