"""The genes of a check as a table: how well each is predicted on these spots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qtpy.QtCore import QModelIndex, Qt

from napari_peka.gui.gene_model import GENE, TRUST, VALUE, GeneModel, Measure, trust_word
from napari_peka.io.trust import gene_words

PCC, DISAGREEMENT, SHARE = "PCC on these spots", "disagreement", "share of attainable"
#: only of maps with intervals
WITHIN = "within the 90 % interval"
CHECK_MEASURES = {
    PCC: Measure("pcc", "PCC", "{:.2f}", "Pearson correlation of predicted and measured expression over these spots "
                 "(no unit)"),
    DISAGREEMENT: Measure("rmse", "RMSE", "{:.2f}", "Root mean square of measured less predicted, in the map's unit: "
                          "genes of much expression come first"),
    SHARE: Measure("share", "of att.", "{:.0%}", "PCC as a share of what the noise of the measurement lets any model "
                   "reach on these spots; not told where that is below 0.2"),
    "errors lie together": Measure("moran", "Moran", "{:.2f}", "Moran's I of measured less predicted, -1 to 1: about "
                                   "0 where errors are scattered at random"),
    WITHIN: Measure("coverage_90", "in 90 %", "{:.0%}", "Share of these spots that lie within the map's 90 % interval: "
                    "about 90 % where the model knows how wrong it is"),
    "predicted too low or high": Measure("residual", "Mean", "{:+.2f}", "Mean of measured less predicted, in the map's "
                                         "unit: above 0 the map is too low"),
}  # fmt: skip
_WORDS = (
    "The correlation in words: good from 0.5, fair from 0.3, weak from 0.15. With * and last: genes that the model was "
    "not shown to predict on data that were left out of its training"
)


class CheckGenes(GeneModel):
    """The genes that are both measured and predicted, a row each: symbol, a number, and the PCC in words."""

    def __init__(self) -> None:
        super().__init__()
        self._measure, self._all = CHECK_MEASURES[PCC], True
        self._head: Any = None

    def of(self, check: Any) -> None:
        """Show the genes of a check; None: none. Those that the model was not shown to predict come last."""
        self._head = None if check is None else check.prediction.head
        if check is None:
            self.show(None)
            return
        shown = dict(zip(self._head.genes, self._head.predictable))
        told = [shown[gene] for gene in check.genes]
        self.show(SimpleNamespace(genes=check.genes, gene_ids=check.gene_ids, pcc=None, predictable=told))

    def measure(self, name: str) -> None:
        """Show and order by another number, one of :data:`CHECK_MEASURES`."""
        self._measure = CHECK_MEASURES[name]
        self._arrange()

    def headerData(self, section: int, orientation: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return title and tooltip of a column."""
        if section == TRUST and orientation == Qt.Orientation.Horizontal:
            if role == Qt.ItemDataRole.DisplayRole:
                return "Agreement"
            if role == Qt.ItemDataRole.ToolTipRole:
                return _WORDS
        return super().headerData(section, orientation, role)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell."""
        gene = self.gene_at(index.row())
        if gene is None or role == Qt.ItemDataRole.ToolTipRole:
            return None if gene is None else self._told(gene)
        if role == Qt.ItemDataRole.DisplayRole and index.column() == TRUST:
            pcc = self.pcc(gene)
            word = "not scored" if pcc is None else trust_word(pcc)
            return f"{word} *" if self.not_shown(gene) else word
        return super().data(index, role)

    def _told(self, gene: int) -> str:
        head = self._genes.head
        name = f"{head.genes[gene]} {head.gene_ids[gene] if head.gene_ids else ''}".strip()
        pcc = self.pcc(gene)
        here = "not measured to vary on these spots" if pcc is None else f"PCC {pcc:.2f} on these spots"
        return f"{name}: {here}. Before: {gene_words(self._head, head.genes[gene])}"


__all__ = ["CHECK_MEASURES", "DISAGREEMENT", "GENE", "PCC", "SHARE", "TRUST", "VALUE", "WITHIN", "CheckGenes"]
