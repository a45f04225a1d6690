"""How a model learns: loss and correlation by epoch, with the lines that give them a meaning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_peka.gui.choosers import Snug

if TYPE_CHECKING:
    from napari_peka.workflows.watch import Glance, Part

#: told apart by colour-blind people too (Okabe and Ito), and readable on light and dark ground
TRAIN, CHECK, HELD_OUT, CEILING = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
HEIGHT_PX = 136
#: px: left, top, right, bottom; without the last a letter's lower half is cut
_MARGINS = (0, 2, 8, 8)


class Curves(QWidget):
    """Two small plots, for one training after another."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.pcc = (self._plot(name) for name in ("loss", "PCC"))
        self._lines: dict[str, Any] = {}
        self._points: dict[str, tuple[list[float], list[float]]] = {}
        for plot, name, colour in ((self.loss, "train", TRAIN), (self.loss, "check", CHECK),
                                   (self.pcc, "check_pcc", CHECK), (self.pcc, "held_out", HELD_OUT)):  # fmt: skip
            self._lines[name] = plot.plot(
                pen=pg.mkPen(colour, width=2), symbol="o", symbolSize=5, symbolBrush=colour, symbolPen=None
            )
        self.frozen = pg.InfiniteLine(angle=0, pen=pg.mkPen(HELD_OUT, style=Qt.PenStyle.DashLine))
        self.ceiling = pg.InfiniteLine(angle=0, pen=pg.mkPen(CEILING, style=Qt.PenStyle.DotLine, width=2))
        for line in (self.frozen, self.ceiling):
            self.pcc.addItem(line)
        self.loss_words, self.pcc_words = Snug(), Snug()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.loss_words, self.loss, self.pcc_words, self.pcc):
            column.addWidget(widget)
        self.clear()
        self._colour()

    def begin(self, part: Part) -> None:
        """Begin the curves of another training."""
        self.clear()
        ends = f"attainable {part.ceiling:.2f}" if math.isfinite(part.ceiling) else ""
        self._ceiling, self._judged = part.ceiling, part.judged
        self._left_out = part.name if len(part.section) else ""
        self._line(self.ceiling, part.ceiling)
        self._ends = ends

    def add(self, glance: Glance) -> None:
        """Add an epoch."""
        x = float(glance.epoch)
        if not glance.epoch:
            self._frozen = glance.held_out_pcc
            self._line(self.frozen, glance.held_out_pcc)
        for name, value in (
            ("train", glance.curve.get("train_loss", math.nan)), ("check", glance.curve.get("val_loss", math.nan)),
            ("check_pcc", glance.val_pcc), ("held_out", glance.held_out_pcc),
        ):  # fmt: skip
            if math.isfinite(value):
                xs, ys = self._points[name]
                xs.append(x)
                ys.append(value)
                self._lines[name].setData(xs, ys)
        self._tell(glance)

    def clear(self) -> None:
        """Show nothing."""
        self._points = {name: ([], []) for name in self._lines}
        for line in self._lines.values():
            line.setData([], [])
        for line in (self.frozen, self.ceiling):
            line.hide()
        self._frozen = self._ceiling = math.nan
        self._ends, self._left_out = "", ""
        self.loss_words.setText(f"Loss: {_in('training', TRAIN)}, {_in('checked while training', CHECK)}")
        self.pcc_words.setText(f"PCC: {_in('checked while training', CHECK)}, {_in('left out', HELD_OUT)}")

    def values(self, name: str) -> list[float]:
        """Return what a curve has so far: ``train``, ``check``, ``check_pcc``, ``held_out``."""
        return list(self._points[name][1])

    def _tell(self, glance: Glance) -> None:
        said = [f"{_in('checked', CHECK)} {_number(glance.val_pcc)}", f"{_in('left out', HELD_OUT)} "
                f"{_number(glance.held_out_pcc)}"]  # fmt: skip
        if math.isfinite(self._frozen) and glance.epoch:
            said.append(f"{_in('- -', HELD_OUT)}\N{NO-BREAK SPACE}untrained\N{NO-BREAK SPACE}{_number(self._frozen)}")
        if self._ends:
            said.append(f"{_in('···', CEILING)} {self._ends}")
        self.pcc_words.setText("PCC: " + ", ".join(said))
        if glance.curve:
            self.loss_words.setText(
                f"Loss: {_in('training', TRAIN)} {_number(glance.curve['train_loss'])}, "
                f"{_in('checked', CHECK)} {_number(glance.curve['val_loss'])}"
            )

    def _plot(self, name: str) -> Any:
        plot = pg.PlotWidget()
        plot.setFixedHeight(HEIGHT_PX)
        plot.setMenuEnabled(False)
        plot.hideButtons()
        plot.getPlotItem().layout.setContentsMargins(*_MARGINS)
        plot.setMouseEnabled(False, False)
        plot.setLabel("bottom", "epoch")
        plot.showGrid(y=True, alpha=0.2)
        plot.getAxis("left").setWidth(36)
        for side in ("left", "bottom"):
            plot.getAxis(side).enableAutoSIPrefix(False)
        plot.setToolTip(
            "Loss on what trains and on what checks the training; lower is better" if name == "loss" else
            "Mean correlation of predicted and measured expression over the most variable genes, by a quick read-out; "
            "dashed: the encoder before training; dotted: what the noise of the measurement lets any model reach"
        )  # fmt: skip
        return plot

    def _line(self, line: Any, value: float) -> None:
        line.setVisible(math.isfinite(value))
        if math.isfinite(value):
            line.setValue(value)

    def changeEvent(self, event: Any) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() in (event.Type.PaletteChange, event.Type.StyleChange):
            self._colour()

    def _colour(self) -> None:
        palette = self.palette()
        back, front = palette.color(QPalette.ColorRole.Window), palette.color(QPalette.ColorRole.WindowText)
        for plot in (self.loss, self.pcc):
            plot.setBackground(back)
            for side in ("left", "bottom"):
                plot.getAxis(side).setPen(front)
                plot.getAxis(side).setTextPen(front)


def _in(text: str, colour: str) -> str:
    return f'<span style="color: {colour}"><b>{text}</b></span>'.replace("- -", "-\N{NO-BREAK SPACE}-")


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "?"
