"""The dock *Explore expression*: search a gene, see its map and how far to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import QAbstractTableModel, QModelIndex, QSortFilterProxyModel, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QFormLayout,
    QHeaderView,
    QLineEdit,
    QPushButton,
    QSlider,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_peka.core.errors import PekaError
from napari_peka.gui import layers
from napari_peka.gui.choosers import DOCK_WIDTH, LayerChooser, Text, notice, with_button
from napari_peka.gui.run_panel import sentence
from napari_peka.io.figure import trust_text

#: ms to wait for the next key before a gene is computed: held arrow keys move the row, not the map
SETTLE_MS = 60
#: px; seven rows, also where another dock takes the height
TABLE_HEIGHT = 180
GENE, PCC, TRUST = range(3)
_TITLES = ("Gene", "PCC", "Trust")
_TIPS = (
    "Gene symbol; Ensembl ids can be searched too",
    "Pearson correlation of predicted and measured expression on sections that were left out of training (no unit)",
    "The correlation in words: good from 0.5, fair from 0.3, weak from 0.15",
)
_SORT = Qt.ItemDataRole.UserRole


class GeneModel(QAbstractTableModel):
    """The genes of a head, a row each. Nothing is computed but the cells that are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self._head: Any = None

    def show(self, head: Any) -> None:
        """Show the genes of another head."""
        self.beginResetModel()
        self._head = head
        self.endResetModel()

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        """Return the number of genes."""
        return 0 if self._head is None or parent.isValid() else len(self._head.genes)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        """Return 3."""
        return len(_TITLES)

    def headerData(self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return title and tooltip of a column."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        return {Qt.ItemDataRole.DisplayRole: _TITLES, Qt.ItemDataRole.ToolTipRole: _TIPS}.get(role, (None,) * 3)[
            section
        ]

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell."""
        row, column = index.row(), index.column()
        pcc = self.pcc(row)
        if role == _SORT:
            return self._head.genes[row] if column == GENE else -2.0 if pcc is None else pcc
        if role == Qt.ItemDataRole.DisplayRole:
            shown = (self._head.genes[row], "–" if pcc is None else f"{pcc:.2f}", _word(pcc))
            return shown[column]
        if role == Qt.ItemDataRole.ToolTipRole:
            gene_id = self._head.gene_ids[row] if self._head.gene_ids else ""
            return f"{self._head.genes[row]} {gene_id}".strip() + f": {trust_text(pcc)}"
        if role == Qt.ItemDataRole.TextAlignmentRole and column == PCC:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        return None

    def pcc(self, row: int) -> float | None:
        """Return a gene's held-out correlation, or None."""
        if self._head.pcc is None or not np.isfinite(self._head.pcc[row]):
            return None
        return float(self._head.pcc[row])

    def matches(self, row: int, text: str) -> bool:
        """Whether a gene's symbol contains `text`, or its Ensembl id begins with it; any case."""
        ids = self._head.gene_ids
        return text in self._head.genes[row].casefold() or (bool(ids) and ids[row].casefold().startswith(text))


class GeneFilter(QSortFilterProxyModel):
    """Sorts and filters the genes."""

    def __init__(self, genes: GeneModel) -> None:
        super().__init__()
        self._genes, self._text = genes, ""
        self.setSourceModel(genes)
        self.setSortRole(_SORT)
        self.setSortCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)

    def search(self, text: str) -> None:
        """Keep the genes that match."""
        self._text = text.strip().casefold()
        self.invalidate()

    def filterAcceptsRow(self, row: int, parent: QModelIndex) -> bool:
        """Whether a gene is kept."""
        return not self._text or self._genes.matches(row, self._text)


class ExploreWidget(QWidget):
    """Look at the genes of a predicted map.

    Parameters
    ----------
    napari_viewer
        The viewer; napari passes it.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._head: Any = None
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._build()
        self._map_changed()

    def _build(self) -> None:
        self.setMaximumWidth(DOCK_WIDTH)
        self.map = LayerChooser(self.viewer, lambda x: layers.prediction_of(x) is not None, label=layers.map_label)
        self.map.setToolTip("A predicted map")
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open a result, a folder named *.peka.zarr")
        self.search = QLineEdit()
        self.search.setPlaceholderText("search a gene")
        self.search.setToolTip("Part of a symbol, or an Ensembl id")
        self.search.setClearButtonEnabled(True)
        self.genes = GeneModel()
        self.shown = GeneFilter(self.genes)
        self.table = _table(self.shown)
        self.about = Text()
        self.error = Text("color: #d9534f;")
        self.error.hide()
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setToolTip("Opacity of the map, 0 to 100 %")
        self.bar = QCheckBox("colour bar")
        self.bar.setToolTip("Colours from the 2nd to the 98th percentile of the map, in the gene's unit")
        self.unreadable = QCheckBox()
        self.unreadable.setToolTip("Where the slide could not be decoded: no value there, not even a wrong one")
        self._lay_out()
        self.map.changed.connect(self._map_changed)
        self.open_button.clicked.connect(self._browse)
        self.search.textChanged.connect(self._search)
        self.search.returnPressed.connect(self._first)
        self.table.selectionModel().currentRowChanged.connect(self._row_changed)
        self._settle.timeout.connect(self._show_gene)
        self.opacity.valueChanged.connect(self._set_opacity)
        self.bar.toggled.connect(self._set_bar)
        self.unreadable.toggled.connect(self._set_unreadable)

    def _lay_out(self) -> None:
        top = QFormLayout()
        top.addRow("Map", with_button(self.map, self.open_button))
        low = QFormLayout()
        low.addRow("Opacity", self.opacity)
        low.addRow("", self.bar)
        low.addRow("", self.unreadable)
        column = QVBoxLayout(self)
        column.addLayout(top)
        column.addWidget(self.search)
        column.addWidget(self.table, 1)
        column.addWidget(self.about)
        column.addWidget(self.error)
        column.addLayout(low)
        column.addWidget(notice())

    # -- which map -----------------------------------------------------------------------------------------------

    def _map_changed(self) -> None:
        layer = self.map.layer()
        prediction = layers.prediction_of(layer)
        for widget in (self.search, self.table, self.opacity, self.bar):
            widget.setEnabled(prediction is not None)
        bad = 0 if prediction is None else prediction.n_unreadable
        self.unreadable.setVisible(bad > 0)
        self.unreadable.setText(f"show {bad} unreadable tiles")
        self._quietly(self.unreadable, any(layers.shows_unreadable(x, prediction) for x in self.viewer.layers))
        if prediction is None:
            self._head = None
            self.genes.show(None)
            self.about.setText("Predict a map or open a result to begin.")
            return
        if self._head is not prediction.head:
            self._head = prediction.head
            self.genes.show(prediction.head)
        layer.events.contrast_limits.connect(self._colours_changed)  # a second connection is the first one
        self._quietly(self.opacity, round(layer.opacity * 100))
        layers.show_colour_bar(layer)
        self.bar.setChecked(True)
        self._select(layers.gene_of(layer) or prediction.genes[0])

    def _quietly(self, widget: QSlider | QCheckBox, value: int | bool) -> None:
        widget.blockSignals(True)
        if isinstance(widget, QSlider):
            widget.setValue(int(value))
        else:
            widget.setChecked(bool(value))
        widget.blockSignals(False)

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Open a result (*.peka.zarr)")
        if chosen:
            self.open_result(Path(chosen))

    def open_result(self, path: Path) -> None:
        """Open a stored result as a map; what is wrong with it is said in the error line."""
        from napari_peka.io.store import read_prediction

        self._fail(None)
        try:
            prediction = read_prediction(path)
            data, settings, _ = layers.heatmap_layer(prediction, layers.best_gene(prediction))
        except Exception as e:  # noqa: BLE001 - a person gets a sentence, never a traceback
            self._fail(e)
            return
        self.map.choose(self.viewer.add_image(data, **settings))

    # -- which gene ----------------------------------------------------------------------------------------------

    def gene(self) -> str | None:
        """Return the gene of the current row, or None."""
        index = self.table.currentIndex()
        if not index.isValid() or self._head is None:
            return None
        gene: str = self._head.genes[self.shown.mapToSource(index).row()]
        return gene

    def pick(self, gene: str) -> None:
        """Show a gene, as if its row had been picked; an unknown one is said in the error line."""
        self._fail(None)
        try:
            if self._head is not None:
                self._head.index(gene)
                self.search.clear()
                self._select(gene)
                self._show_gene()
        except PekaError as e:
            self._fail(e)

    def _select(self, gene: str) -> None:
        row = self._head.index(gene)
        index = self.shown.mapFromSource(self.genes.index(row, GENE))
        if index.isValid():
            self.table.setCurrentIndex(index)
            self.table.scrollTo(index, QAbstractItemView.ScrollHint.PositionAtCenter)
        self._describe(row)

    def _search(self, text: str) -> None:
        self._fail(None)
        self.shown.search(text)
        self.table.scrollToTop()
        if not self.shown.rowCount() and self._head is not None:
            try:
                self._head.index(text)
            except PekaError as e:
                self._fail(e)

    def _row_changed(self, *_: object) -> None:
        self._settle.start()

    def _first(self) -> None:
        if self.shown.rowCount():
            self.table.setCurrentIndex(self.shown.index(0, GENE))

    def _show_gene(self) -> None:
        layer, gene = self.map.layer(), self.gene()
        prediction = layers.prediction_of(layer)
        if prediction is None or gene is None:
            return
        if gene != layers.gene_of(layer):
            try:
                layers.update_heatmap(layer, prediction, gene)
            except Exception as e:  # noqa: BLE001 - a person gets a sentence, never a traceback
                self._fail(e)
        self._describe(prediction.head.index(gene))

    def _colours_changed(self, event: Any = None) -> None:
        if isalive(self) and self._head is not None and (gene := self.gene()) is not None:
            self._describe(self._head.index(gene))

    def _describe(self, row: int) -> None:
        head = self._head
        gene_id = f" · {head.gene_ids[row]}" if head.gene_ids and head.gene_ids[row] else ""
        low, high = layers.colours_of(self.map.layer())
        self.about.setText(
            f"<b>{head.genes[row]}</b>{gene_id}<br>{head.unit}, predicted; {trust_text(self.genes.pcc(row))}<br>"
            f"{self._split()}"
            f"colours from {low:.3g} to {high:.3g}"
        )

    def _split(self) -> str:
        """Return on what the trust was measured: good on one tissue says little of another."""
        prediction = layers.prediction_of(self.map.layer())
        split = prediction.pcc_split if prediction is not None else ""
        return f"PCC: {split}<br>" if split else ""

    def _fail(self, error: BaseException | None) -> None:
        self.error.setText("" if error is None else sentence(error))
        self.error.setVisible(error is not None)

    # -- how it looks --------------------------------------------------------------------------------------------

    def _set_opacity(self, percent: int) -> None:
        if (layer := self.map.layer()) is not None:
            layer.opacity = percent / 100

    def _set_bar(self, on: bool) -> None:
        if (layer := self.map.layer()) is not None:
            layer.colorbar.visible = layer.name_overlay.visible = on

    def _set_unreadable(self, on: bool) -> None:
        prediction = layers.prediction_of(self.map.layer())
        for old in [x for x in self.viewer.layers if layers.shows_unreadable(x, prediction)]:
            self.viewer.layers.remove(old)
        if on and prediction is not None:
            data, settings, _ = layers.unreadable_layer(prediction)
            self.viewer.add_image(data, **settings)


def _word(pcc: float | None) -> str:
    text = trust_text(pcc)
    return text[text.index("(") + 1 : -1] if text.endswith(")") else "not measured"


def _table(model: GeneFilter) -> QTableView:
    table = QTableView()
    table.setModel(model)
    table.setMinimumHeight(TABLE_HEIGHT)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setSortingEnabled(True)
    table.sortByColumn(PCC, Qt.SortOrder.DescendingOrder)
    table.setShowGrid(False)
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(22)
    header = table.horizontalHeader()
    header.setSectionResizeMode(GENE, QHeaderView.ResizeMode.Stretch)
    # fixed widths: fitting to contents would measure 18,000 rows
    for column, width in ((PCC, 56), (TRUST, 96)):
        header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(column, width)
    return table
