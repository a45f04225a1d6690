"""What a model must beat: predictions that need no histology.

Each baseline is one linear map, so that a bundle can carry it and any later evaluation can apply it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from napari_peka.core.errors import SettingError
from napari_peka.training.splits import pitch_um

FloatArray = npt.NDArray[np.floating]
BASELINES = ("train_mean", "colour", "position")
#: what is fitted nowhere here: a model as it was before its head was refitted
BEFORE = "before"
#: of a model that was trained: its encoder as it was, read out in the same way
FROZEN = "frozen"
COLOUR_NAMES = ("red mean", "green mean", "blue mean", "red sd", "green sd", "blue sd")
PLACE_NAMES = ("y", "x", "y²", "x²", "yx", "edge distance", "log edge distance", "density near", "density around")
#: tiles read at once: 224 px tiles are then 40 MB as float32
_TILES = 64
#: bumps a side over a section, for splits within sections
_BUMPS = 5
#: ridge penalty on standardised features, in spots: no more than guards against equal columns
_ALPHA = 1.0
#: least standard deviation that features are divided by, in their units (grey levels, shares of the box): what hardly
#: varies where one trains, such as a bump over the part left out, must not count twenty times as much there
_LEAST_SPREAD = 0.1


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``values = features @ weights + bias``: ``weights (d, g)``, ``bias (g,)``, float32."""

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def __call__(self, features: FloatArray) -> npt.NDArray[np.float32]:
        """Apply the map to ``(n, d)`` features."""
        return np.asarray(features, np.float32) @ self.weights + self.bias


def colour_features(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return mean and standard deviation of each tile's red, green and blue.

    Parameters
    ----------
    tiles
        uint8, shape ``(n, S, S, 3)``; anything that slices to such arrays, such as a zarr.

    Returns
    -------
    array
        float32, shape ``(n, 6)``, columns :data:`COLOUR_NAMES`, in grey levels.

    Raises
    ------
    SettingError
        If the tiles are not 8-bit RGB.
    """
    if len(tiles.shape) != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
        raise SettingError(f"colour needs uint8 tiles (n, S, S, 3), got {tiles.dtype} {tuple(tiles.shape)}")
    out = np.empty((tiles.shape[0], 6), np.float32)
    for at in range(0, len(out), _TILES):
        pixels = np.asarray(tiles[at : at + _TILES]).astype(np.float32)
        out[at : at + _TILES, :3] = pixels.mean((1, 2))
        out[at : at + _TILES, 3:] = pixels.std((1, 2))
    return out


def place_features(
    centre_um: npt.NDArray[np.float64], section: Sequence[str], *, within: bool = False
) -> npt.NDArray[np.float32]:
    """Return where each spot lies in its section, from the spots' positions alone.

    Parameters
    ----------
    centre_um
        Spot centres (y, x) in µm, shape ``(n, 2)``, of **all** spots of each section: its bounding box, edge and
        density come from them.
    section
        Section of each spot, ``n``.
    within
        Add a smooth function of position of each section's own, for splits whose test spots lie in sections that are
        trained on as well. Such features say nothing of another section: a bundle must not carry a map of them.

    Returns
    -------
    array
        float32, shape ``(n, 9)``, columns :data:`PLACE_NAMES`: position in the bounding box (-1 to 1), its quadratic
        terms, the distance to the nearest edge spot in spot distances and its ``log1p``, and the share of full numbers
        of neighbours within 1.6 and 4 spot distances. With `within`, 25 Gaussian bumps a section follow.

    Notes
    -----
    An edge spot has fewer than three quarters of the neighbours that spots inside tissue have; holes have edges too.
    """
    own = np.asarray(section, dtype=object)
    names = list(dict.fromkeys(section))
    bumps = _BUMPS**2 * len(names) if within else 0
    out = np.zeros((len(centre_um), len(PLACE_NAMES) + bumps), np.float32)
    for k, name in enumerate(names):
        rows = np.flatnonzero(own == name)
        box = _in_box(centre_um[rows])
        out[rows, :5] = np.column_stack([box, box**2, box.prod(1)])
        out[rows, 5:9] = _tissue(centre_um[rows])
        if within:
            first = len(PLACE_NAMES) + k * _BUMPS**2
            out[rows, first : first + _BUMPS**2] = _bumps(box)
    return out


def fit_baselines(colour: FloatArray, place: FloatArray, targets: FloatArray) -> dict[str, LinearMap]:
    """Fit all baselines on training spots.

    Parameters
    ----------
    colour
        :func:`colour_features`, shape ``(n, c)``; spots with NaN (tile unread) are left out.
    place
        :func:`place_features`, shape ``(n, p)``.
    targets
        Expression, shape ``(n, g)``.

    Returns
    -------
    dict
        ``train_mean`` (the mean of the training spots; it reads no features: weights ``(0, g)``), ``colour`` (weights
        ``(c, g)``) and ``position`` (``(p, g)``).

    Raises
    ------
    SettingError
        If rows do not match or there is no spot.
    """
    if not len(targets) == len(colour) == len(place) or not len(targets):
        raise SettingError(
            f"baselines need features of every training spot, got {len(targets)} spots, colours of {len(colour)} and"
            f" places of {len(place)}"
        )
    nothing = np.zeros((len(targets), 0), np.float32)
    return {name: _ridge(x, targets) for name, x in zip(BASELINES, (nothing, colour, place))}


def predict_baselines(
    maps: dict[str, LinearMap], colour: FloatArray, place: FloatArray
) -> dict[str, npt.NDArray[np.float32]]:
    """Return each baseline's prediction, float32 ``(n, g)``; NaN where its features are."""
    features = {"train_mean": np.zeros((len(colour), 0), np.float32), "colour": colour, "position": place}
    return {name: maps[name](features[name]) for name in maps}


def _ridge(x: FloatArray, y: FloatArray) -> LinearMap:
    ok = np.isfinite(x).all(1)
    if not ok.any():
        raise SettingError("no training spot has the features of a baseline: its tiles could not be read")
    x, y = np.asarray(x[ok], np.float64), np.asarray(y[ok], np.float64)
    mean, sd = x.mean(0), np.maximum(x.std(0), _LEAST_SPREAD)
    z, y_mean = (x - mean) / sd, y.mean(0)
    weights = np.linalg.solve(z.T @ z + _ALPHA * np.eye(z.shape[1]), z.T @ (y - y_mean)) / sd[:, None]
    return LinearMap(weights.astype(np.float32), (y_mean - mean @ weights).astype(np.float32))


def _in_box(centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = centre.min(0), centre.max(0)
    return np.asarray(2 * (centre - low) / np.maximum(high - low, 1e-9) - 1)


def _tissue(centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return edge distance, its log1p, and density near and around, ``(n, 4)``."""
    pitch = max(pitch_um(centre), 1e-9)
    tree = cKDTree(centre)
    density = []
    for radius in (1.6, 4.0):
        count = tree.query_ball_point(centre, radius * pitch, return_length=True) - 1
        density.append(count / max(float(np.quantile(count, 0.9)), 1.0))
    edge = density[0] < 0.75
    # a section without an edge, such as a full rectangle of two rows, is all edge
    distance = cKDTree(centre[edge]).query(centre)[0] / pitch if edge.any() else np.zeros(len(centre))
    return np.column_stack([distance, np.log1p(distance), *density])


def _bumps(box: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    at = np.linspace(-1, 1, _BUMPS)
    width = at[1] - at[0]
    y, x = (np.exp(-(((side[:, None] - at) / width) ** 2)) for side in box.T)
    return np.asarray((y[:, :, None] * x[:, None, :]).reshape(len(box), -1))
