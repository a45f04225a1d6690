"""Box plots of a gene in several regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from qtpy.QtGui import QPalette

#: a box needs no more numbers than these, however many tiles a region has
_QUANTILES = np.linspace(0, 1, 201)
HEIGHT = 150


class BoxPlot(pg.PlotWidget):
    """A box a region: median and quartiles, whiskers to the last value within 1.5 times their distance (Tukey)."""

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(HEIGHT)
        self.setMouseEnabled(False, False)
        self.hideButtons()
        self.setMenuEnabled(False)
        self.shown: dict[str, npt.NDArray[np.float64]] = {}
        # a thousandth of a unit is no unit that anybody knows
        self.getPlotItem().getAxis("left").enableAutoSIPrefix(False)
        self._draw()

    def show_values(self, values: Mapping[str, npt.NDArray[np.floating]], label: str) -> None:
        """Show a box for each name; names without values have none."""
        self.shown = {name: np.quantile(v, _QUANTILES) for name, v in values.items() if len(v)}
        self.setVisible(bool(self.shown))
        item: Any = self.getPlotItem()
        item.setLabel("left", label)
        if self.shown:
            item.getAxis("bottom").setTicks([list(enumerate(self.shown))])
            item.setXRange(-0.6, len(self.shown) - 0.4, padding=0)
            low, high = min(v[0] for v in self.shown.values()), max(v[-1] for v in self.shown.values())
            item.setYRange(low, high if high > low else low + 1)
        self._draw()

    def changeEvent(self, event: Any) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() in (event.Type.PaletteChange, event.Type.StyleChange) and hasattr(self, "shown"):
            self._draw()

    def _draw(self) -> None:
        """Draw the boxes in the colours of the theme."""
        palette = self.palette()
        colour = palette.color(QPalette.ColorRole.WindowText)
        self.setBackground(palette.color(QPalette.ColorRole.Window))
        for side in ("bottom", "left"):
            axis: Any = self.getPlotItem().getAxis(side)
            axis.setPen(colour)
            axis.setTextPen(colour)
        self.clear()
        if self.shown:
            boxes = pg.BoxplotItem(
                loc=np.arange(len(self.shown)), data=list(self.shown.values()), pen=pg.mkPen(colour),
                medianPen=pg.mkPen("#e69f00", width=2), outlier=False, width=0.6,
            )  # fmt: skip
            self.addItem(boxes)
