"""Whether measured spots lie within a map's intervals as often as these promise: a plot, and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_peka.gui.choosers import Snug
from napari_peka.gui.run_panel import RunPanel
from napari_peka.gui.scatter_panel import DOT, DOT_ON_DARK, OTHER

if TYPE_CHECKING:
    from napari_peka.workflows.calibration import Calibration

#: Okabe and Ito's orange: the gene that is looked at
GENE = "#E69F00"
HEIGHT = 200
#: px: left, top, right, bottom; without the last a letter's lower half is cut
_MARGINS = (0, 6, 8, 8)
NO_INTERVALS = (
    "The model of this map says nothing of its errors, so that there is nothing to compare with: it was made without "
    "held-out spots, or by an older version. Train it again."
)


class CalibrationPanel(QWidget):
    """Share of measured spots within intervals against the share that these should hold, for a gene and for all.

    It holds nothing of the dock that it is in: that answers :attr:`fit`.
    """

    def __init__(self) -> None:
        super().__init__()
        from napari_peka.workflows.calibration import MEANING

        self.plot = pg.PlotWidget()
        self.plot.setFixedHeight(HEIGHT)
        self.plot.setMouseEnabled(False, False)
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setToolTip(MEANING)
        item: Any = self.plot.getPlotItem()
        item.layout.setContentsMargins(*_MARGINS)
        item.setLabel("bottom", "should hold, % of spots")
        item.setLabel("left", "do hold, %")
        item.getAxis("bottom").setTicks([[(v, str(v)) for v in (50, 60, 70, 80, 90, 100)]])
        item.setXRange(45, 104, padding=0.02)
        item.setYRange(0, 100, padding=0.02)
        dashed = pg.mkPen(OTHER, width=1, style=Qt.PenStyle.DashLine)
        unseen = pg.mkPen(0, 0, 0, 0)  # without a pen a line has no path that a band could lie between
        self._low, self._high = (pg.PlotDataItem(pen=unseen) for _ in range(2))
        self._band = pg.FillBetweenItem(self._low, self._high)
        self._mean, self._gene = (pg.PlotDataItem(symbol="o", symbolSize=6, symbolPen=None) for _ in range(2))
        for shown in (
            self._low,
            self._high,
            self._band,
            pg.PlotDataItem([0, 100], [0, 100], pen=dashed),
            self._mean,
            self._gene,
        ):
            item.addItem(shown)
        self._gene.setPen(pg.mkPen(GENE, width=2))
        self._gene.setSymbolBrush(GENE)
        self.words = Snug()
        self.fit = RunPanel("Fit intervals to these spots")
        self.fit.run_button.setToolTip(
            "Let the map's intervals hold what was measured here, and write them into its result; its values stay. "
            "From then on these spots prove nothing of its intervals"
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.plot, self.words, self.fit):
            column.addWidget(widget)
        self._said: dict[str, str] = {}
        self.ready(False)

    def ready(self, known: bool, seen: bool = False) -> None:
        """Begin with another map, or another section.

        Parameters
        ----------
        known
            Whether the map has intervals.
        seen
            Whether the model was trained on these spots: nothing is fitted to them.
        """
        self._said = {}
        for item in (self._low, self._high, self._mean, self._gene):
            item.setData([], [])
        self.plot.setVisible(known)
        self.fit.run_button.setEnabled(known and not seen and not self.fit.running)
        self.words.setText("" if known else NO_INTERVALS)

    def show_gene(self, gene: str, found: Calibration | None) -> None:
        """Show a gene's line; None: it is still computed."""
        levels, held = ((), np.empty((0, 1))) if found is None else (found.levels, found.held)
        self._gene.setData(100 * np.asarray(levels), 100 * held[:, 0])
        self._say("gene", GENE, gene, found, 0)

    def show_all(self, found: Calibration) -> None:
        """Show the mean over all genes, and between what most of them lie."""
        at, (low, high) = 100 * np.asarray(found.levels), found.around
        for item, values in ((self._low, low), (self._high, high), (self._mean, found.mean)):
            item.setData(at, 100 * values)
        self._say("all", self._colour, f"{found.genes:,} genes that vary", found, None)

    def shown(self) -> dict[str, list[tuple[float, float]]]:
        """Return the points of each line, in %: ``gene``, ``mean``, ``low``, ``high``."""
        lines = {"gene": self._gene, "mean": self._mean, "low": self._low, "high": self._high}
        return {k: list(zip(*(() if v is None else v for v in line.getData()))) for k, line in lines.items()}

    def paint(self, ground: str, ink: str) -> None:
        """Take the colours of a theme."""
        self.plot.setBackground(ground)
        self._colour = DOT_ON_DARK if pg.mkColor(ground).lightnessF() < 0.5 else DOT
        self._mean.setPen(pg.mkPen(self._colour, width=2))
        self._mean.setSymbolBrush(self._colour)
        self._band.setBrush(pg.mkBrush(self._colour + "40"))
        for side in ("left", "bottom"):
            axis: Any = self.plot.getPlotItem().getAxis(side)
            axis.enableAutoSIPrefix(False)
            axis.setPen(ink)
            axis.setTextPen(ink)

    _colour = DOT

    def _say(self, key: str, colour: str, who: str, found: Calibration | None, gene: int | None) -> None:
        said = "…" if found is None else found.in_words(gene)
        self._said[key] = f'<span style="color: {colour}"><b>{who}</b></span>: {said}'
        self.words.setText("<br>".join(self._said[k] for k in ("gene", "all") if k in self._said))
