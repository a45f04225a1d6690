"""What a map says under the mouse: value and its interval, where it lies among all tiles, how far to believe it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.compat import isalive

from napari_peka.core.doubt import LEVEL
from napari_peka.gui import layers, map_layers
from napari_peka.gui.choosers import Text
from napari_peka.io.trust import gene_trust, ordinal, split_words, unlike

NOWHERE = "point at the map to read it"


class Here(Text):
    """A line that follows the mouse over the canvas.

    Parameters
    ----------
    viewer
        The viewer.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._layer: Any = None
        self.setText(NOWHERE)
        viewer.cursor.events.position.connect(self.read)  # weak: it ends with this widget

    def follow(self, layer: Any) -> None:
        """Read another map's layer; None: none."""
        self._layer = layer
        self.setVisible(layer is not None)
        self.read()

    def read(self, event: Any = None) -> None:
        """Read what is under the mouse now."""
        if isalive(self) and self.isVisible():
            self.setText(reading(self._layer, self._viewer.cursor.position))


def reading(layer: Any, world: Any) -> str:
    """Return in words what a map's layer says at a place in world coordinates."""
    prediction = layers.prediction_of(layer)
    if prediction is None or layer.data.ndim != 2:
        return NOWHERE
    at = np.rint(layer.world_to_data(np.asarray(world, float)[-2:])).astype(int)
    if (at < 0).any() or (at >= layer.data.shape).any():
        return NOWHERE
    value, known = layer.data[tuple(at)], layer.data[np.isfinite(layer.data)]
    if not np.isfinite(value):
        return "no value here"
    gene, unit = layers.gene_of(layer), layers.unit_of(layer)
    rank = (np.count_nonzero(known < value) + np.count_nonzero(known <= value)) / 2 / len(known)
    tile = _tile(prediction, at)
    between = "" if gene is None or tile is None else _interval(layer, prediction, gene, value, tile)
    trust = "" if gene is None else f"; {gene_trust(prediction.head, gene)}{split_words(prediction)}"
    return (
        f"here: {value:.3g} {unit}, {ordinal(round(100 * rank))} percentile of this map{between}{trust}"
        f"{_likeness(prediction, tile)}"
    )


def _likeness(prediction: Any, tile: int | None) -> str:
    """Return how unlike the training data a tile is; empty where that is not known."""
    if tile is None or prediction.ood is None or not np.isfinite(prediction.ood[tile]):
        return ""
    place = ordinal(int(prediction.ood[tile]))
    if unlike(prediction)[tile]:
        return f"; unlike the training data ({place} percentile): do not believe it"
    return f"; {place} percentile of unlikeness"


def _tile(prediction: Any, at: npt.NDArray[np.int_]) -> int | None:
    """Return the number of the tile at a map's pixel, or None."""
    grid = prediction.tiles.grid_yx
    hits = np.flatnonzero((grid[:, 0] == at[0] + grid[:, 0].min()) & (grid[:, 1] == at[1] + grid[:, 1].min()))
    return int(hits[0]) if len(hits) else None


def _interval(layer: Any, prediction: Any, gene: str, value: float, tile: int) -> str:
    """Return the 90 % interval of the value at a tile, as the map shows values; empty where it is not known."""
    column, look = prediction.head.index(gene), map_layers.look_of(layer)
    intervals = prediction.intervals
    if intervals is None or not intervals.tell(column):
        return ""
    rows = np.array([tile])
    own = prediction.values(gene, rows) if look.shows_linear(prediction.unit) else np.array([value], np.float32)
    both = intervals.around(own, prediction.spread_of(rows), LEVEL, column)
    lower, upper = (look.values(end, prediction.unit)[0] for end in both)
    return f"; 9 of 10 measured values between {lower:.3g} and {upper:.3g}"
