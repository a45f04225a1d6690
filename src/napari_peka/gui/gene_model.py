"""The genes of a map as a table that is filtered and ordered at once, however many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView

from napari_peka.core.aliases import names_of
from napari_peka.io import trust

GENE, VALUE, TRUST = range(3)
#: letters from which on the beginning of another name (Ki-67) is enough
_BEGUN = 3
#: what :meth:`Genes._far` is below where a gene is called exactly so
_NAMED_SO = 2
#: px; seven rows, also where another dock takes the height
TABLE_HEIGHT = 180


@dataclass(frozen=True)
class Measure:
    """A number of each gene.

    Parameters
    ----------
    column
        Of :func:`napari_peka.io.statistics.gene_table`.
    title, text, what
        Of the table's column, of a cell (a format), and of the tooltip.
    """

    column: str
    title: str
    text: str
    what: str


PCC = "held-out PCC"
MEASURES = {
    PCC: Measure("pcc", "PCC", "{:.2f}", "Pearson correlation of predicted and measured expression on sections that "
                 "were left out of training (no unit)"),
    "share of attainable": Measure("share_of_attainable", "of att.", "{:.0%}", "Held-out PCC as a share of what the "
                                   "noise of the measurement lets any model reach"),
    "mean on this map": Measure("mean", "Mean", "{:.2f}", "Mean of the predicted values over the tiles, in the map's "
                                "unit"),
    "spread on this map": Measure("sd", "SD", "{:.2f}", "Standard deviation of the predicted values, in the map's "
                                  "unit"),
    "spatial structure": Measure("moran", "Moran", "{:.2f}", "Moran's I of the predicted map, -1 to 1: about 0 where "
                                 "nothing lies together"),
    "difference of regions": Measure("cohens_d", "d", "{:+.2f}", "Cohen's d: difference of the means of two regions in "
                                     "pooled standard deviations"),
}  # fmt: skip
#: the measure that is known once two regions were compared
DIFFERENCE = "difference of regions"
_TIPS = {
    GENE: "Gene symbol; Ensembl ids can be searched too",
    TRUST: "The held-out correlation in words: good from 0.5, fair from 0.3, weak from 0.15. Unproven: it lies "
    "no higher than what colour, position or chance reach",
}
UNPROVEN = "unproven"


class Genes:
    """Which genes are shown, in which order: numbers and names only, no Qt."""

    def __init__(self, head: Any = None) -> None:
        self.head = head
        self.numbers: dict[str, npt.NDArray[np.float64]] = {}
        n = 0 if head is None else len(head.genes)
        self._folded = [] if head is None else [g.casefold() for g in head.genes]
        self._ids = [] if head is None or not head.gene_ids else [g.casefold() for g in head.gene_ids]
        self._others = (
            [] if head is None else [(i, n.casefold()) for i, g in enumerate(head.genes) for n in names_of(g)]
        )
        self._names: dict[int, set[str]] = {}
        for i, name in self._others:
            self._names.setdefault(i, set()).add(name)
        #: genes by the name of a set, folded
        self.sets: dict[str, npt.NDArray[np.intp]] = {}
        pcc = np.full(n, np.nan) if head is None or head.pcc is None else np.asarray(head.pcc, float)
        self.numbers["pcc"] = pcc
        #: genes that the model was shown to predict
        self.shown = np.asarray(getattr(head, "predictable", np.ones(n, bool)), bool)
        self.rows: npt.NDArray[np.intp] = np.arange(n)

    def arrange(
        self, text: str, column: str | None, descending: bool, least: float = -np.inf, all_: bool = False
    ) -> None:
        """Keep the genes that match a text and order them by a number, or by name where `column` is None.

        With `least` only genes of at least that held-out correlation are kept. Genes that the model was not shown to
        predict are kept with `all_` only, and come last. The gene that is called exactly so comes first, then those
        that begin so.

        A symbol matches that contains the text, an Ensembl id or another name (HER2, Ki-67) that begins with it; any
        case. The name of a set of genes keeps its genes. What has no number comes last either way.
        """
        kept, wanted = self.matching(text), text.strip().casefold()
        if not all_:
            kept = kept[self.shown[kept]]
        if np.isfinite(least):
            kept = kept[self.numbers["pcc"][kept] >= least]  # not measured is not enough
        if column is None:
            kept = np.array(sorted(kept.tolist(), key=self._folded.__getitem__, reverse=descending), np.intp)
        else:
            values = self.number(column)[kept]
            kept = kept[np.argsort(-values if descending else values, kind="stable")]  # NaN comes last
        far = np.zeros(len(kept), int)
        if wanted and wanted not in self.sets:
            far = np.array([self._far(i, wanted) for i in kept.tolist()], int)
        named = far < _NAMED_SO if wanted and wanted not in self.sets else np.zeros(len(kept), bool)
        kept = kept[np.lexsort((far, ~self.shown[kept] & ~named))]
        self.rows = kept.astype(np.intp)

    def matching(self, text: str) -> npt.NDArray[np.intp]:
        """Return the genes that match a text; all where it is empty."""
        wanted = text.strip().casefold()
        if not wanted:
            return np.arange(len(self._folded))
        if wanted in self.sets:
            return self.sets[wanted]
        hits = [i for i, gene in enumerate(self._folded) if wanted in gene]
        hits += [i for i, gene in enumerate(self._ids) if gene.startswith(wanted)]
        begun = len(wanted) >= _BEGUN  # two letters begin too many names
        hits += [i for i, name in self._others if name == wanted or (begun and name.startswith(wanted))]
        return np.unique(np.array(hits, np.intp))

    def _far(self, gene: int, wanted: str) -> int:
        """Return how far a hit is from what was typed: the symbol itself, another name, its beginning, the rest."""
        symbol = self._folded[gene]
        if symbol == wanted:
            return 0
        if wanted in self._names.get(gene, ()) or (self._ids and self._ids[gene] == wanted):
            return 1
        return 2 if symbol.startswith(wanted) else 3

    def number(self, column: str) -> npt.NDArray[np.float64]:
        """Return a number of every gene; NaN while it is not known."""
        return self.numbers.get(column, np.full(len(self._folded), np.nan))


class GeneModel(QAbstractTableModel):
    """The genes of a head, a row each: symbol, a number, and trust in words."""

    def __init__(self) -> None:
        super().__init__()
        self._genes = Genes()
        self._measure = MEASURES[PCC]
        self._text, self._least, self._all = "", -np.inf, False
        self._column, self._order = VALUE, Qt.SortOrder.DescendingOrder

    def show(self, head: Any) -> None:
        """Show the genes of another head; None: none."""
        self._genes = Genes(head)
        self._arrange()

    def tell(self, table: Any) -> None:
        """Take the numbers of the map's genes, from :func:`gene_table`."""
        self._genes.numbers |= {name: np.asarray(table[name], float) for name in table if name != "gene_id"}
        self._arrange()

    def measure(self, name: str) -> None:
        """Show and order by another number, one of :data:`MEASURES`."""
        self._measure = MEASURES[name]
        self._arrange()

    def know_sets(self, sets: dict[str, list[str]]) -> None:
        """Take sets of genes, which can then be searched by their names."""
        head = self._genes.head
        if head is not None:
            rows = {name: known_rows(head, genes) for name, genes in sets.items()}
            self._genes.sets = {name.casefold(): at for name, at in rows.items() if len(at)}
            self._arrange()

    def search(self, text: str) -> None:
        """Keep the genes that match."""
        self._text = text
        self._arrange()

    def trust(self, least: float) -> None:
        """Keep the genes of at least this held-out correlation; minus infinity: all."""
        self._least = least
        self._arrange()

    def list_all(self, on: bool) -> None:
        """Keep the genes that the model was not shown to predict, too."""
        self._all = on
        self._arrange()

    @property
    def n_not_shown(self) -> int:
        """Number of genes that the model was not shown to predict."""
        return int((~self._genes.shown).sum())

    def not_shown(self, gene: int) -> bool:
        """Whether the model was not shown to predict a gene."""
        return not self._genes.shown[gene]

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Order the genes by a column."""
        self._column, self._order = column, order
        self._arrange()

    def gene_at(self, row: int) -> int | None:
        """Return the number of the gene in a row, or None."""
        return int(self._genes.rows[row]) if 0 <= row < len(self._genes.rows) else None

    def listed(self) -> list[str]:
        """Return the symbols of the genes that are kept, in their order."""
        return [] if self._genes.head is None else [self._genes.head.genes[i] for i in self._genes.rows.tolist()]

    def hidden(self) -> list[str]:
        """Return the symbols that match the search and are not trusted enough to be listed."""
        head = self._genes.head
        if head is None or not self._text.strip():
            return []
        kept = np.setdiff1d(self._genes.matching(self._text), self._genes.rows)
        return [head.genes[i] for i in kept.tolist()]

    def row_of(self, gene: int) -> int | None:
        """Return the row of a gene, or None when it is not among those that are kept."""
        hits = np.flatnonzero(self._genes.rows == gene)
        return int(hits[0]) if len(hits) else None

    def pcc(self, gene: int) -> float | None:
        """Return a gene's held-out correlation, or None."""
        value = float(self._genes.numbers["pcc"][gene])
        return value if np.isfinite(value) else None

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        """Return the number of genes that are kept."""
        return 0 if parent.isValid() else len(self._genes.rows)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        """Return 3."""
        return 3

    def headerData(self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return title and tooltip of a column."""
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return ("Gene", self._measure.title, "Trust")[section]
        if role == Qt.ItemDataRole.ToolTipRole:
            return _TIPS.get(section, self._measure.what)
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell."""
        gene, column = self.gene_at(index.row()), index.column()
        if gene is None:
            return None
        head = self._genes.head
        if role == Qt.ItemDataRole.DisplayRole:
            if column == VALUE:
                value = self._genes.number(self._measure.column)[gene]
                return self._measure.text.format(value) if np.isfinite(value) else "–"
            return head.genes[gene] if column == GENE else self._trust(gene)
        if role == Qt.ItemDataRole.ToolTipRole:
            names = [head.gene_ids[gene] if head.gene_ids else "", *names_of(head.genes[gene])]
            also = f" ({', '.join(filter(None, names))})" if any(names) else ""
            return f"{head.genes[gene]}{also}: {trust.gene_words(head, head.genes[gene])}"
        if role == Qt.ItemDataRole.TextAlignmentRole and column == VALUE:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        return None

    def _trust(self, gene: int) -> str:
        return UNPROVEN if self.not_shown(gene) else trust_word(self.pcc(gene))

    def _arrange(self) -> None:
        column = {GENE: None, VALUE: self._measure.column, TRUST: "pcc"}[self._column]
        self.beginResetModel()
        self._genes.arrange(self._text, column, self._order == Qt.SortOrder.DescendingOrder, self._least, self._all)
        self.endResetModel()


def known_rows(head: Any, genes: list[str]) -> npt.NDArray[np.intp]:
    """Return the numbers of those genes that a head knows."""
    found = [head.find(gene) for gene in genes]
    return np.unique(np.array([at for at in found if at is not None], np.intp))


def trust_word(pcc: float | None) -> str:
    """Return a held-out correlation as a word."""
    return "not measured" if pcc is None or not np.isfinite(pcc) else trust.trust_word(pcc)


def gene_view(model: GeneModel) -> QTableView:
    """Return a table that shows genes, a row each, of which one can be picked."""
    table = QTableView()
    table.setModel(model)
    table.setMinimumHeight(TABLE_HEIGHT)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setSortingEnabled(True)
    table.sortByColumn(VALUE, Qt.SortOrder.DescendingOrder)
    table.setShowGrid(False)
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(22)
    header = table.horizontalHeader()
    header.setSectionResizeMode(GENE, QHeaderView.ResizeMode.Stretch)
    # fixed widths: fitting to contents would measure 18,000 rows
    for column, width in ((VALUE, 72), (TRUST, 96)):
        header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(column, width)
    return table
