"""Predicted against measured, a dot a spot; drag over dots to choose them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from qtpy.QtCore import QPointF, QRectF, Qt, Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

#: Okabe and Ito's blue and grey: spots that count, and others; chosen ones in what the layers mark them with
DOT, OTHER, CHOSEN = "#0072B2", "#8a8f96", "#00e5ff"
#: Okabe and Ito's sky blue: spots that count on dark ground
DOT_ON_DARK = "#56B4E9"
HEIGHT = 240
#: px: left, top, right, bottom; without the last a letter's lower half is cut
_MARGINS = (0, 6, 8, 8)


class _Box(pg.ViewBox):
    """A plot in which a drag chooses what it holds, and a click without drag nothing."""

    dragged = Signal(object)
    cleared = Signal()

    def __init__(self) -> None:
        super().__init__(enableMenu=False)
        self.setMouseEnabled(False, False)

    def mouseDragEvent(self, ev: Any, axis: int | None = None) -> None:
        """Show the rectangle, and tell it when the button is released."""
        if ev.button() != Qt.MouseButton.LeftButton:
            ev.ignore()
            return
        ev.accept()
        if ev.isFinish():
            self.rbScaleBox.hide()
            rect = QRectF(QPointF(ev.buttonDownPos()), QPointF(ev.pos())).normalized()
            self.dragged.emit(self.childGroup.mapRectFromParent(rect))
        else:
            self.updateScaleBox(ev.buttonDownPos(), ev.pos())

    def mouseClickEvent(self, ev: Any) -> None:
        """Choose nothing."""
        if ev.button() == Qt.MouseButton.LeftButton:
            ev.accept()
            self.cleared.emit()


class ScatterPanel(QWidget):
    """A plot of predicted against measured values.

    Attributes
    ----------
    chosen
        Emitted with the numbers of the spots that a person dragged over, a set.
    """

    chosen = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._xy = np.empty((0, 2))
        self._box = _Box()
        self.plot = pg.PlotWidget(viewBox=self._box)
        self.plot.setFixedHeight(HEIGHT)
        self.plot.hideButtons()
        self.plot.getPlotItem().layout.setContentsMargins(*_MARGINS)
        self.plot.setToolTip("A dot a spot; on the line it is predicted exactly. Drag over dots to mark their spots")
        self._line = pg.PlotDataItem(pen=pg.mkPen(OTHER, width=1, style=Qt.PenStyle.DashLine))
        self._others, self._dots, self._marked = (
            pg.ScatterPlotItem(size=size, pen=None, brush=pg.mkBrush(brush))
            for size, brush in ((4, OTHER + "70"), (6, DOT + "c0"), (9, CHOSEN))
        )
        self._marked.setPen(pg.mkPen("k", width=1))  # seen among blue dots and on any ground
        for item in (self._line, self._others, self._dots, self._marked):
            self.plot.addItem(item)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.plot)
        self._box.dragged.connect(self._choose)
        self._box.cleared.connect(self._clear)

    def show_values(
        self,
        measured: npt.NDArray[np.floating],
        predicted: npt.NDArray[np.floating],
        rows: npt.NDArray[np.bool_],
        unit: str,
    ) -> None:
        """Draw spots; those not in `rows` are pale."""
        self._xy = np.column_stack([measured, predicted]).astype(float)
        known = np.isfinite(self._xy).all(1)
        self._dots.setData(*self._xy[known & rows].T)
        self._others.setData(*self._xy[known & ~rows].T)
        self._marked.setData([], [])
        plot = self.plot.getPlotItem()
        plot.setLabel("bottom", f"measured, {unit}")
        plot.setLabel("left", "predicted")
        if known.any():
            low, high = float(self._xy[known].min()), float(self._xy[known].max())
            self._line.setData([low, high], [low, high])
            plot.setXRange(*_range(self._xy[known, 0]), padding=0)
            plot.setYRange(*_range(self._xy[known, 1]), padding=0)

    def clear(self) -> None:
        """Draw nothing."""
        self._xy = np.empty((0, 2))
        for item in (self._line, self._others, self._dots, self._marked):
            item.setData([], [])

    def mark(self, rows: set[int]) -> None:
        """Make some spots stand out."""
        at = [i for i in sorted(rows) if i < len(self._xy) and np.isfinite(self._xy[i]).all()]
        self._marked.setData(*self._xy[at].T) if at else self._marked.setData([], [])

    def paint(self, ground: str, ink: str) -> None:
        """Take the colours of a theme."""
        self.plot.setBackground(ground)
        dark = pg.mkColor(ground).lightnessF() < 0.5
        self._dots.setBrush(pg.mkBrush((DOT_ON_DARK if dark else DOT) + "c0"))
        for side in ("left", "bottom"):
            axis = self.plot.getPlotItem().getAxis(side)
            axis.enableAutoSIPrefix(False)  # a thousandth of a unit is no unit that anybody knows
            axis.setPen(ink)
            axis.setTextPen(ink)

    def _choose(self, rect: QRectF) -> None:
        x, y = self._xy.T
        inside = (x >= rect.left()) & (x <= rect.right()) & (y >= rect.top()) & (y <= rect.bottom())
        self.chosen.emit(set(np.flatnonzero(inside).tolist()))

    def _clear(self) -> None:
        self.chosen.emit(set())


def _range(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room
