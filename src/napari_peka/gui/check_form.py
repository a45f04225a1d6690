"""What the dock *Check against spots* is made of, and what it says in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtGui import QAction
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHeaderView,
    QLineEdit,
    QMenu,
    QPushButton,
    QRadioButton,
    QTableView,
    QWidget,
)
from superqt import QDoubleRangeSlider

from napari_peka.gui import layers, spot_layers
from napari_peka.gui.calibration_panel import CalibrationPanel
from napari_peka.gui.check_genes import CHECK_MEASURES, GENE, TRUST, VALUE, WITHIN, CheckGenes
from napari_peka.gui.choosers import LayerChooser, Text, fold, notice, scrolled, slim, with_button
from napari_peka.gui.gene_model import trust_word
from napari_peka.gui.run_panel import RunPanel
from napari_peka.gui.scatter_panel import ScatterPanel
from napari_peka.gui.spot_layers import DIFFERENCE, KINDS, MEASURED, PREDICTED
from napari_peka.gui.spot_view import SIDE_BY_SIDE
from napari_peka.io.trust import gene_words, split_words

if TYPE_CHECKING:
    from napari_peka.gui.check_jobs import Doubt, Look

WHOLE = "whole section"
NO_MAP = "Predict a map, or drag a result (*.peka.zarr) into the viewer, to begin."
NO_SPOTS = (
    "Open what was measured on this map's slide: Space Ranger outs, .h5ad, SpatialData, or ST counts. Its image must "
    "be the slide itself."
)
#: px; six rows
_TABLE_HEIGHT = 160
_MODES = (*KINDS, SIDE_BY_SIDE)
_TIPS = {
    MEASURED: "Expression at the spots, in the map's unit, on one colour scale with the predicted one",
    PREDICTED: "What the map says at the spots, interpolated between its tiles, on the measured one's colour scale",
    DIFFERENCE: "Measured less predicted, in the same unit: purple is more and orange less than predicted, white is 0",
    SIDE_BY_SIDE: "Slide, measured, predicted and difference in napari's grid; other layers are put aside meanwhile",
}

#: where the documentation tells of this dock
HELP = "workbench/#check-against-spots"


class CheckForm(QObject):
    """The widgets of the dock; it holds nothing of the dock but its place.

    Attributes
    ----------
    mode_chosen
        Emitted with what is to be shown: one of the kinds of layers, or side by side.
    limits_chosen
        Emitted with the ends of the colour scale, when a person moves them.
    """

    mode_chosen = Signal(str)
    limits_chosen = Signal(object)

    def __init__(self, dock: QWidget, viewer: Any) -> None:
        super().__init__(dock)
        self.places: list[Any] = []
        self._wished = ""
        self.map = LayerChooser(viewer, lambda x: layers.prediction_of(x) is not None, label=layers.map_label)
        self.map.setToolTip("A predicted map")
        self.section = slim(QComboBox())
        self.section.setToolTip("Open sections whose image is this map's slide")
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open measured spots of this map's slide")
        menu = QMenu(self.open_button)
        self.file_action = QAction("File (.h5ad, ST counts)…", menu)
        self.folder_action = QAction("Folder (Space Ranger outs, SpatialData)…", menu)
        menu.addActions([self.file_action, self.folder_action])
        self.open_button.setMenu(menu)
        self.about, self.loud, self.error = Text(), Text("color: #d9534f; font-weight: bold;"), Text("color: #d9534f;")
        self.search = QLineEdit()
        self.search.setPlaceholderText("search a gene")
        self.search.setToolTip("Part of a symbol, or an Ensembl id")
        self.search.setClearButtonEnabled(True)
        self.order = slim(QComboBox())
        self.order.addItems(list(CHECK_MEASURES))
        self.order.setToolTip("What the table shows of each gene, over the spots within the region, and orders by")
        self.genes = CheckGenes()
        self.table = _table(self.genes)
        self.modes = QButtonGroup(self)
        self.choices = [QRadioButton(mode) for mode in _MODES]  # held here: the group does not own them
        for i, (mode, button) in enumerate(zip(_MODES, self.choices)):
            button.setToolTip(_TIPS[mode])
            button.setChecked(i == 0)
            self.modes.addButton(button, i)
        self.colours = QDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.colours.setToolTip("Values at the ends of the colour scale of measured and predicted, in the map's unit")
        self.scale = Text()
        self.shapes = LayerChooser(
            viewer, lambda x: type(x).__name__ == "Shapes" and not spot_layers.is_places(x), none="none"
        )
        self.shapes.setToolTip("A Shapes layer with polygons, rectangles or ellipses drawn on the slide")
        self.within = slim(QComboBox())
        self.within.addItem(WHOLE)
        self.within.setToolTip("Spots whose centre lies there make the table, the plot and the numbers")
        self.scatter = ScatterPanel()
        self.numbers = Text()
        self.outline = QCheckBox("outline where errors lie together")
        self.outline.setToolTip("Places where the map is wrong in one direction over several spots side by side")
        self.outline.setChecked(True)
        self.found = Text()
        self.calibration = CalibrationPanel()
        self.holds = fold("Do the intervals hold?", self.calibration)
        self.meaning = fold("What an outline means")
        self.panel = RunPanel("Write report")
        self.panel.run_button.setToolTip("A page of this check, for a browser without network, beside the map")
        self.open_report = QPushButton("Open report")
        self.open_report.setToolTip("Open the page in the browser")
        self.open_report.setEnabled(False)
        self._lay_out(dock)
        self.modes.idClicked.connect(self._mode)
        self.colours.valueChanged.connect(self._limits)

    def _lay_out(self, dock: QWidget) -> None:
        from napari_peka.workflows.check_places import OUTLINES

        top = QFormLayout()
        top.addRow("Map", self.map)
        top.addRow("Measured", with_button(self.section, self.open_button))
        middle = QFormLayout()
        middle.addRow("Regions", self.shapes)
        middle.addRow("Within", self.within)
        middle.addRow("Order by", self.order)
        shown = QWidget()
        grid = QGridLayout(shown)
        grid.setContentsMargins(0, 0, 0, 0)
        for i, button in enumerate(self.choices):
            grid.addWidget(button, i // 2, i % 2)
        low = QFormLayout()
        low.addRow("Show", shown)
        low.addRow("Colours", self.colours)
        low.addRow("", self.scale)
        words = Text()
        words.setText(OUTLINES)
        self.meaning.addWidget(words)
        column = scrolled(dock, notice(HELP))
        column.addLayout(top)
        for widget in (self.about, self.loud, self.error):
            column.addWidget(widget)
        column.addLayout(middle)
        column.addWidget(self.search)
        column.addWidget(self.table, 1)
        column.addWidget(self.numbers)
        column.addWidget(self.scatter)
        column.addLayout(low)
        for widget in (
            self.outline,
            self.found,
            self.meaning,
            self.holds,
            self.panel,
            self.open_report,
        ):
            column.addWidget(widget)
        self.fail("")

    # -- what can be done ----------------------------------------------------------------------------------------

    def invite(self, has_map: bool) -> None:
        """Say what is missing; nothing can be looked at."""
        self.about.setText(NO_SPOTS if has_map else NO_MAP)
        self._say(self.loud, "")
        self.open_button.setEnabled(has_map)
        self.section.setEnabled(has_map and self.section.count() > 0)
        self._enable(False)
        for text in (self.numbers, self.found, self.scale):
            text.setText("")
        self.scatter.clear()
        self.scatter.hide()
        self.holds.setVisible(False)

    def ready(self, check: Any) -> None:
        """Say what is compared, and what must be known of it."""
        self.open_button.setEnabled(True)
        self.section.setEnabled(True)
        self._enable(True)
        self.scatter.show()
        self.holds.setVisible(True)
        self.calibration.ready(check.intervals is not None, check.seen)
        at = self.order.findText(WITHIN)
        if (at >= 0) != (check.intervals is not None):
            self.order.removeItem(at) if at >= 0 else self.order.addItem(WITHIN)
        spots, inside = len(check), int(check.inside.sum())
        where = f"{spots:,} spots" if spots == inside else f"{inside:,} of {spots:,} spots"
        quiet = check.warnings[1:] if check.seen else check.warnings
        lines = [f"{where}, {len(check.genes):,} genes in both, {check.unit}.", _words(check)]
        self.about.setText("<br>".join([*filter(None, lines), *(f"⚠ {w}" for w in quiet)]))
        self._say(
            self.loud,
            f"The model was trained on {check.section.section_id}: these figures say nothing of how well it predicts."
            if check.seen
            else "",
        )

    def _enable(self, on: bool) -> None:
        for widget in (
            self.search, self.order, self.table, self.colours, self.shapes, self.within, self.outline, self.scatter,
            self.panel.run_button, *self.choices,
        ):  # fmt: skip
            widget.setEnabled(on)

    def fail(self, sentence: str) -> None:
        """Show an error, or none."""
        self._say(self.error, sentence)

    def _say(self, label: Text, words: str) -> None:
        label.setText(words)
        label.setVisible(bool(words))

    # -- what is offered -----------------------------------------------------------------------------------------

    def wish(self, section: str) -> None:
        """Choose a section as soon as it is offered."""
        self._wished = section

    def offer(self, sections: list[str]) -> None:
        """Offer sections; nothing is emitted."""
        before = self._wished or self.section.currentData()
        self._wished = ""
        self.section.blockSignals(True)
        self.section.clear()
        for name in sections:
            self.section.addItem(name, name)
        at = self.section.findData(before)
        self.section.setCurrentIndex(at if at >= 0 else self.section.count() - 1)
        self.section.blockSignals(False)
        self.section.setEnabled(bool(sections))

    def list_regions(self, names: list[str]) -> None:
        """Offer regions; nothing is emitted."""
        before = self.within.currentText()
        self.within.blockSignals(True)
        self.within.clear()
        self.within.addItems([WHOLE, *names])
        self.within.setCurrentIndex(max(0, self.within.findText(before)))
        self.within.blockSignals(False)

    # -- what is found -------------------------------------------------------------------------------------------

    def tell(self, look: Look, doubt: Doubt | None) -> None:
        """Say how a gene is predicted; what bounds it comes later."""
        from napari_peka.workflows.calibration import moran_words

        check, gene, score = look.values.check, look.values.gene, look.score
        at = check.index(gene)
        gene_id = f" · {check.gene_ids[at]}" if check.gene_ids and check.gene_ids[at] else ""
        spots, pcc = int(score["spots"]), score["pcc"]
        if not math.isfinite(pcc):
            said = "no PCC: too few spots, or it does not vary there"
        else:
            said = f"PCC {pcc:.2f} ({trust_word(pcc)})"
        top = math.nan if doubt is None else doubt.attainable
        if math.isfinite(top):
            said += f", attainable {top:.2f}"
            said += f" ({pcc / top:.0%} of it)" if pcc > 0 and top >= _least() else ""
        elif doubt is None:
            said += ", attainable …"
        where = "" if self.within.currentText() == WHOLE else f" in {self.within.currentText()}"
        errors = (
            f"<br>RMSE {score['rmse']:.2f}, mean of measured − predicted {_signed(score['residual'])} ({check.unit})"
            if spots
            else ""
        )
        together = moran_words(score["moran"])
        if together:
            together = f"<br>Moran's I of that {score['moran']:.2f}".replace("-", "−") + f": {together}"
        before = f"<br>Before: {gene_words(check.prediction.head, gene)}{split_words(check.prediction)}"
        self.numbers.setText(f"<b>{gene}</b>{gene_id}<br>{said}, over {spots:,} spots{where}{errors}{together}{before}")
        if check.intervals is not None:
            self.calibration.show_gene(gene, None if doubt is None else doubt.calibration)
        low, high = look.values.difference_limits()
        self.scale.setToolTip(f"The difference's colours go from {low:.3g} to {high:.3g}, with 0 in their middle")
        if self.colours.minimum() != look.values.reach()[0] or self.colours.maximum() != look.values.reach()[1]:
            self._range(*look.values.reach())
        if doubt is not None:
            self.places = doubt.places
            self.found.setText(_found(doubt.places))

    def show_limits(self, limits: tuple[float, float] | None) -> None:
        """Show the ends of the colour scale; nothing is emitted."""
        if limits is None:
            return
        low, high = limits
        self.colours.blockSignals(True)
        self.colours.setRange(min(low, self.colours.minimum()), max(high, self.colours.maximum()))
        self.colours.setValue((low, high))
        self.colours.blockSignals(False)
        self.scale.setText(f"{low:.3g} to {high:.3g}, measured and predicted alike".replace("-", "−"))

    def _range(self, low: float, high: float) -> None:
        ends: Any = self.colours.value()
        self.colours.blockSignals(True)
        self.colours.setRange(low, high)
        self.colours.setValue((max(low, ends[0]), min(high, ends[1])))
        self.colours.blockSignals(False)

    def _limits(self, value: tuple[float, float]) -> None:
        if value[1] > value[0]:
            self.limits_chosen.emit(value)

    def _mode(self, number: int) -> None:
        self.mode_chosen.emit(_MODES[number])


def _found(places: list[Any]) -> str:
    if not places:
        return "no place stands out (false discovery rate 5 %)"
    parts = [f"{p.kind} at {len(p.rows)} spots ({_signed(p.residual)})" for p in places[:4]]
    more = f", and {len(places) - 4} more" if places[4:] else ""
    return "; ".join(parts) + more


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _words(check: Any) -> str:
    """Return how the model's training relates to the section; what was seen is told elsewhere, and loudly."""
    return "" if check.seen else f"{check.split[:1].upper()}{check.split[1:]}."


def _least() -> float:
    from napari_peka.training.scoring import MIN_ATTAINABLE

    return MIN_ATTAINABLE


def _table(model: CheckGenes) -> QTableView:
    table = QTableView()
    table.setModel(model)
    table.setMinimumHeight(_TABLE_HEIGHT)
    table.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QTableView.SelectionMode.SingleSelection)
    table.setSortingEnabled(True)
    table.sortByColumn(VALUE, Qt.SortOrder.DescendingOrder)
    table.setShowGrid(False)
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(22)
    header = table.horizontalHeader()
    header.setSectionResizeMode(GENE, QHeaderView.ResizeMode.Stretch)
    for column, width in ((VALUE, 72), (TRUST, 100)):  # fitting to contents would measure 18,000 rows
        header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(column, width)
    return table
