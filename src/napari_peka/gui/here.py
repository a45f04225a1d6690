"""What a map says under the mouse: value, where that lies among all tiles, and how far to believe it."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.compat import isalive

from napari_peka.gui import layers
from napari_peka.gui.choosers import Text
from napari_peka.io.figure import trust_text

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
    head = prediction.head
    pcc = None if gene is None or head.pcc is None else float(head.pcc[head.index(gene)])
    trust = "" if gene is None else f"; {trust_text(pcc)}"
    return f"here: {value:.3g} {unit}, {ordinal(round(100 * rank))} percentile of this map{trust}"


def ordinal(n: int) -> str:
    """Return a number as a place in an order: 1st, 2nd, 11th."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
