"""Regions drawn on a map: what the picked gene does in each, and which genes differ between two."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFormLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_peka.gui import region_layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.box_plot import BoxPlot
from napari_peka.gui.choosers import LayerChooser, Text, slim
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.spot_layers import is_places
from napari_peka.io.statistics import cohens_d, compare_regions, effect_word, region_table, region_values

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction

REST = "all other tiles"
_TITLES = ("Region", "Tiles", "Mean", "SD")
_TIPS = (
    "Name of the region, from the shapes' feature name",
    "Tiles whose centre lies in it",
    "Mean of the picked gene, in the map's unit",
    "Standard deviation over its tiles, in the map's unit",
)
#: ms after the last change of a shape before the numbers are taken again
SETTLE_MS = 250
#: of a region with fewer, a mean says little: tiles beside one another are alike
FEW_TILES = 20


class RegionPanel(QWidget):
    """Numbers of regions, and the question which genes differ.

    Parameters
    ----------
    viewer
        The viewer, whose Shapes layers are offered.

    Attributes
    ----------
    ranked
        Emitted with the table of :func:`napari_peka.io.statistics.compare_regions` and what was compared, in words.
    """

    ranked = Signal(object, str)

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._prediction: Any = None
        self._gene: str | None = None
        self._followed: Any = None
        self._numbers, self._ranking = Aside(self), Aside(self)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self._refresh)
        self.shapes = LayerChooser(viewer, _may_hold_regions, none="none")
        self.shapes.setToolTip("A Shapes layer with polygons, rectangles or ellipses drawn on the slide")
        self.table = QTableWidget(0, len(_TITLES))
        self.table.setHorizontalHeaderLabels(list(_TITLES))
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        self.table.setMinimumHeight(90)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in range(len(_TITLES)):
            self.table.horizontalHeaderItem(column).setToolTip(_TIPS[column])
            if column:
                header.resizeSection(column, 58)
        self.first, self.second = slim(QComboBox()), slim(QComboBox())
        self.first.setToolTip("Genes that are higher here come first")
        self.second.setToolTip("What it is compared with")
        self.rank_button = QPushButton("Rank genes by difference")
        self.rank_button.setToolTip(
            "Cohen's d: difference of the means in pooled standard deviations. No p-values: neighbouring tiles are no "
            "independent samples"
        )
        self.boxes = BoxPlot()
        self.boxes.setToolTip("The picked gene: median and quartiles; whiskers reach to 1.5 times their distance")
        self.boxes.hide()
        self.effect = Text()
        self.said, self.order = Text(), Text()
        #: values of the picked gene by region, and on all other tiles, for the effect between two
        self._values: dict[str, Any] = {}
        form = QFormLayout()
        form.addRow("Shapes", self.shapes)
        pair = QFormLayout()
        pair.addRow("Higher in", self.first)
        pair.addRow("than in", self.second)
        column_ = QVBoxLayout(self)
        column_.setContentsMargins(0, 0, 0, 0)
        column_.addLayout(form)
        column_.addWidget(self.table)
        column_.addWidget(self.boxes)
        column_.addLayout(pair)
        column_.addWidget(self.effect)
        column_.addWidget(self.rank_button)
        column_.addWidget(self.said)
        column_.addWidget(self.order)
        self.shapes.changed.connect(self._follow)
        self.rank_button.clicked.connect(self.rank)
        self.first.currentTextChanged.connect(self._tell_effect)
        self.second.currentTextChanged.connect(self._tell_effect)
        self._numbers.done.connect(self._fill)
        self._numbers.failed.connect(self._fail)
        self._ranking.done.connect(self._told)
        self._ranking.failed.connect(self._fail)
        self._follow()

    def show_gene(self, prediction: Any, gene: str | None) -> None:
        """Tell of another map or gene."""
        self._prediction, self._gene = prediction, gene
        self._refresh()

    def regions(self) -> dict[str, Any]:
        """Return the regions drawn in the chosen layer, by name, in level-0 pixels."""
        shapes = self.shapes.layer()
        if shapes is None or self._prediction is None:
            return {}
        return region_layers.regions_of(shapes, self._prediction.tiles.slide_mpp)

    def rank(self) -> None:
        """Compare the two regions that are chosen."""
        prediction, regions = self._prediction, self.regions()
        a, b = self.first.currentText(), self.second.currentText()
        if prediction is None or a not in regions:
            self.said.setText("draw a region in a Shapes layer, and choose it")
            return
        other = regions.get(b)
        words = f"{a} against {b}"
        self.said.setText(f"comparing {words}")
        self._ranking.ask(partial(_compared, prediction, regions[a], other, words))

    def _follow(self) -> None:
        """Listen to the chosen layer; a connection that was made before is the same one."""
        shapes = self.shapes.layer()
        if shapes is not None and shapes is not self._followed:
            shapes.events.set_data.connect(self._changed)
            shapes.events.features.connect(self._changed)
        self._followed = shapes
        self._refresh()

    def _changed(self, event: Any = None) -> None:
        if isalive(self):
            self._settle.start()

    def _refresh(self) -> None:
        regions = self.regions()
        for box, more in ((self.first, []), (self.second, [REST])):
            before = box.currentText()
            box.clear()
            box.addItems([*more, *regions])
            box.setCurrentIndex(max(0, box.findText(before)))
        self.rank_button.setEnabled(bool(regions))
        if not regions or self._gene is None:
            self._numbers.forget()
            self.table.setRowCount(0)
            self._values = {}
            self.boxes.hide()
            self.effect.setText("")
            drawn = bool(regions) or self.shapes.layer() is None
            self.said.setText("" if drawn else "nothing with an area is drawn in this layer yet")
            return
        self.said.setText("")
        self._numbers.ask(partial(_numbers_of, self._prediction, regions, self._gene))

    def _fill(self, found: Any) -> None:
        gene, table, self._values = found
        if gene == self._gene:
            unit = self._prediction.unit
            self.boxes.show_values({n: v for n, v in self._values.items() if n in set(table["region"])}, unit)
            self._tell_effect()
        self.table.setRowCount(len(table))
        for i, row in enumerate(table.itertuples()):
            numbers = [f"{v:.2f}" if np.isfinite(v) else "–" for v in (row.mean, row.sd)]
            for j, text in enumerate((row.region, f"{row.tiles:,}", *numbers)):
                item = QTableWidgetItem(text)
                if j:
                    item.setTextAlignment(int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter))
                self.table.setItem(i, j, item)

    def _tell_effect(self, *_: object) -> None:
        """Say how much the picked gene differs between the two regions that are chosen."""
        a, b = self.first.currentText(), self.second.currentText()
        one, other = self._values.get(a), self._values.get(self._other(b))
        d = np.nan if one is None or other is None or a == b else cohens_d(one, other)
        if one is None or other is None or not np.isfinite(d):
            self.effect.setText("")
            return
        size = effect_word(d)
        few = min(len(one), len(other))
        warned = f"<br>⚠ only {few} tiles in the smaller one: little to go by" if few < FEW_TILES else ""
        self.effect.setText(f"<b>{self._gene}</b>, {a} against {b}: Cohen's d {d:+.2f} ({size}){warned}")

    def _other(self, name: str) -> str:
        return f"{REST} {self.first.currentText()}" if name == REST else name

    def _told(self, found: Any) -> None:
        table, words = found
        self.said.setText("")
        self.order.setText(f"Ordered by {words}, genes that are predicted at all; <i>Trust: any</i> shows the others.")
        self.ranked.emit(table, words)

    def _fail(self, error: Exception) -> None:
        self.said.setText(sentence(error))


def _may_hold_regions(layer: Any) -> bool:
    return type(layer).__name__ == "Shapes" and not is_places(layer)


def _numbers_of(prediction: Prediction, regions: dict[str, Any], gene: str) -> tuple[str, Any, dict[str, Any]]:
    """Return a gene, its numbers by region, and its values by region and, for each, on all other tiles."""
    table = region_table(prediction, regions, [gene])
    centre, values = prediction.tiles.centre_yx, region_values(prediction, regions, gene)
    outside = {f"{REST} {n}": ~shapely.contains_xy(r, centre[:, 1], centre[:, 0]) for n, r in regions.items()}
    return gene, table, values | region_values(prediction, outside, gene)


def _compared(prediction: Any, a: Any, b: Any, words: str) -> tuple[Any, str]:
    return compare_regions(prediction, a, b), words
