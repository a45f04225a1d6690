"""The list of a map's genes: searched as one types, ordered by a measure, cut at a least trust."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QModelIndex, QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLineEdit, QTableView, QVBoxLayout, QWidget

from napari_peka.core.aliases import symbol_of
from napari_peka.core.errors import PekaError
from napari_peka.gui.choosers import Text, slim
from napari_peka.gui.gene_model import DIFFERENCE, GENE, MEASURES, PCC, VALUE, GeneModel, gene_view
from napari_peka.gui.run_panel import sentence
from napari_peka.io.trust import why_not_shown

if TYPE_CHECKING:
    import pandas as pd

_ID = re.compile(r"ENS[A-Z]*\d+(\.\d+)?", re.IGNORECASE)
#: genes that are named when the filter hides all hits
_NAMED = 3
WEAK = "weak or better"
ALL_GENES = "also genes not shown to be predicted"
#: least held-out correlation of the genes that are listed
LEAST_TRUST = {"any": -np.inf, WEAK: 0.15, "fair or better": 0.3, "good": 0.5}


class GenePanel(QWidget):
    """Search, order and pick genes.

    Attributes
    ----------
    picked
        Emitted when another row is the current one, by mouse, keys or Return in the search line.
    reordered
        Emitted when another measure is asked for: answer with :meth:`tell` where :attr:`needs_numbers`.
    form
        The rows above the search line, for the dock to add its own.
    """

    picked = Signal()
    reordered = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._head: Any = None
        self._shown: str | None = None
        self._to_top = False
        self.search = QLineEdit()
        self.search.setPlaceholderText("search a gene")
        self.search.setToolTip(
            "Part of a symbol, an Ensembl id, another name (HER2, Ki-67), or the name of a gene set; Return: the first"
        )
        self.search.setClearButtonEnabled(True)
        self.said = Text()
        self.said.hide()
        self.order = slim(QComboBox())
        self.order.addItems(list(MEASURES))
        self.order.setToolTip("What the table shows of each gene, and orders by")
        self.trust = slim(QComboBox())
        for text, least in LEAST_TRUST.items():
            self.trust.addItem(text, least)
        self.trust.setToolTip("Genes with less than this held-out correlation are not listed")
        self.all_genes = QCheckBox()
        self.all_genes.setToolTip(
            "Genes that the model was not shown to predict, for their held-out PCC lies no higher than what colour, "
            "position or chance reach; they come last"
        )
        self.all_genes.hide()
        self.genes = GeneModel()
        self.table = gene_view(self.genes)
        self.form = QFormLayout()
        self.form.addRow("Order by", self.order)
        self.form.addRow("Trust", self.trust)
        self.form.addRow(self.all_genes)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self.form)
        column.addWidget(self.search)
        column.addWidget(self.said)
        column.addWidget(self.table, 1)
        self.order.currentTextChanged.connect(self._order_changed)
        self.trust.currentIndexChanged.connect(self._trust_changed)
        self.all_genes.toggled.connect(self._all_changed)
        self.search.textChanged.connect(self._search)
        self.search.returnPressed.connect(self._first)
        self.table.selectionModel().currentRowChanged.connect(self.picked)

    @property
    def needs_numbers(self) -> bool:
        """Whether what is shown of each gene is taken from the map."""
        return self.order.currentText() not in (PCC, DIFFERENCE)

    def gene(self) -> str | None:
        """Return the gene of the current row, or None."""
        index = self.table.currentIndex()
        if not index.isValid() or self._head is None:
            return None
        at = self.genes.gene_at(index.row())
        return None if at is None else str(self._head.genes[at])

    def show_head(self, head: Any) -> None:
        """List the genes of a head; None: there is none."""
        self._head = head
        self.genes.show(head)
        n = self.genes.n_not_shown
        self.all_genes.setText(f"{ALL_GENES} ({n:,})")
        self.all_genes.setVisible(n > 0)

    def reveal(self, gene: str) -> None:
        """List a gene that somebody asks for by name, also where the model was not shown to predict it."""
        if self._head is not None and self.genes.not_shown(self._head.index(gene)):
            self.all_genes.setChecked(True)

    def keep(self, gene: str | None) -> None:
        """Say which gene the map shows: it stays picked, wherever its row goes."""
        self._shown = gene

    def tell(self, table: pd.DataFrame) -> None:
        """Take the numbers of all genes, in the head's order."""
        with self._keeping():
            self.genes.tell(table)
        if self._to_top:  # who asks for another order looks for what comes first
            self.table.scrollToTop()
        self._to_top = False

    def rank(self, table: pd.DataFrame) -> None:
        """Order by what two regions differ in, and pick the first."""
        self.genes.tell(table)
        if self.trust.currentData() < LEAST_TRUST[WEAK]:  # a large difference of what is not predicted is none
            self.trust.setCurrentText(WEAK)
        self.order.setCurrentText(DIFFERENCE)
        self._first()

    def point_at(self, gene: str) -> None:
        """Make a gene's row the current one, where it is listed."""
        row = self.genes.row_of(self._head.index(gene))
        if row is not None:
            index = self.genes.index(row, GENE)
            self.table.setCurrentIndex(index)
            self.table.scrollTo(index, QTableView.ScrollHint.PositionAtCenter)

    def point_at_none(self) -> None:
        """Make no row the current one."""
        self.table.clearSelection()
        self.table.setCurrentIndex(QModelIndex())

    def _order_changed(self, name: str) -> None:
        with self._keeping():
            self.genes.measure(name)
            self.table.sortByColumn(VALUE, Qt.SortOrder.DescendingOrder)
        self.table.scrollToTop()
        self._to_top = True
        self.reordered.emit()

    def _trust_changed(self, *_: object) -> None:
        with self._keeping():
            self.genes.trust(self.trust.currentData())
        self._say_why()

    def _all_changed(self, on: bool) -> None:
        with self._keeping():
            self.genes.list_all(on)
        self._say_why()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keep the gene that is picked, wherever its row goes: its map does not change."""
        gene = self.gene() or self._shown
        with QSignalBlocker(self.table.selectionModel()):
            yield
            if gene is not None and self._head is not None:
                self.point_at(gene)
        self.table.viewport().update()

    def _search(self, text: str) -> None:
        with self._keeping():
            self.genes.search(text)
        if text:
            self.table.scrollToTop()
        else:  # back among all genes, the one that is shown is looked for
            self.table.scrollTo(self.table.currentIndex(), QTableView.ScrollHint.PositionAtCenter)
        self._say_why()

    def _say_why(self) -> None:
        """Say why nothing is listed, where nothing is, and which gene is meant by a name that others only contain."""
        why, text = "", self.search.text().strip()
        if self._head is not None and text:
            meant = symbol_of(text)
            if meant is not None and self._head.find(meant) is None:
                why = f"{text} is {meant}, which this model does not predict"
            elif (named := self._head.find(text)) is not None and self._kept_back(named):
                why = self._why_kept_back(named)
            elif not self.genes.rowCount():
                why = self._why(text)
        self.said.setText(why)
        self.said.setVisible(bool(why))

    def _kept_back(self, gene: int) -> bool:
        return self.genes.not_shown(gene) and not self.all_genes.isChecked()

    def _why_kept_back(self, gene: int) -> str:
        name = self._head.genes[gene]
        return (
            f"{name} is not listed, for the model was not shown to predict it: {why_not_shown(self._head, name)}. Tick "
            f"“{ALL_GENES}” to see it all the same"
        )

    def _why(self, text: str) -> str:
        hidden = self.genes.hidden()
        back = [g for g in hidden if self._kept_back(self._head.index(g))]
        if len(back) == 1:
            return self._why_kept_back(self._head.index(back[0]))
        if back:
            names = ", ".join(back[:_NAMED]) + "…" * (len(back) > _NAMED)
            return f"not shown to be predicted: {names}; tick “{ALL_GENES}” to see them all the same"
        if hidden:
            names = ", ".join(hidden[:_NAMED]) + "…" * (len(hidden) > _NAMED)
            return f"not “{self.trust.currentText()}”: {names}; choose “any” at Trust to see that all the same"
        if not self._head.gene_ids and _ID.fullmatch(text):
            return "this model knows its genes by their symbols, not by Ensembl ids; search the symbol"
        try:
            self._head.index(text)
        except PekaError as e:
            return sentence(e)
        return ""

    def _first(self) -> None:
        if self.genes.rowCount():
            self.table.setCurrentIndex(self.genes.index(0, GENE))
