"""Sets of genes as one score a tile: pasted, or from a GMT file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_peka.core.errors import PekaError
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import Text, slim
from napari_peka.gui.run_panel import sentence
from napari_peka.io.figure import set_trust_text
from napari_peka.io.statistics import gene_set_score, known_genes, own_gene_sets, read_gene_sets

#: what a pasted list is called
PASTED = "pasted genes"
#: unknown genes that are named
_NAMED = 6


class SetPanel(QWidget):
    """Choose a set of genes, and ask for its map.

    Attributes
    ----------
    scored
        Emitted with the map's prediction, the set's name, and the score of each tile, float32 ``(n,)``.
    known
        Emitted with the sets' genes by name, when others are there or the map is another.
    """

    scored = Signal(object, str, object, object)
    known = Signal(dict)

    def __init__(self) -> None:
        super().__init__()
        self._prediction: Any = None
        self._sets: dict[str, list[str]] = {}
        self._scoring = Aside(self)
        self.names = slim(QComboBox())
        self.names.setToolTip("Published signatures, or the sets of a GMT file; the search line takes these names too")
        self.load_button = QPushButton("GMT…")
        self.load_button.setToolTip("Sets of genes from a GMT file, as MSigDB and Enrichr give them")
        self.pasted = QLineEdit()
        self.pasted.setPlaceholderText("or genes, parted by commas or spaces")
        self.pasted.setToolTip("Symbols (any case) or Ensembl ids; Enter shows their score")
        self.show_button = QPushButton("Show score")
        self.show_button.setToolTip(
            "Mean of the genes' values, each standardised over this map: where the set is high or low on this slide; "
            "not to be compared between slides"
        )
        self.said = Text()
        row = QWidget()
        line = QHBoxLayout(row)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.names, 1)
        line.addWidget(self.load_button)
        form = QFormLayout()
        form.addRow("Set", row)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        column.addWidget(self.pasted)
        column.addWidget(self.show_button)
        column.addWidget(self.said)
        self.load_button.clicked.connect(self._browse)
        self.names.currentTextChanged.connect(self._tell)
        self.pasted.textChanged.connect(self._tell)
        self.pasted.returnPressed.connect(self.show_score)
        self.show_button.clicked.connect(self.show_score)
        self._scoring.done.connect(self._done)
        self._scoring.failed.connect(self._fail)
        self._tell()

    def of(self, prediction: Any) -> None:
        """Tell of another map; None: there is none."""
        if prediction is not self._prediction:
            self._prediction = prediction
            if not self._sets:
                self._take(own_gene_sets())
            self.known.emit(self._sets)
            self._tell()

    def load(self, path: Path) -> None:
        """Take the sets of a GMT file."""
        try:
            sets = read_gene_sets(path)
        except PekaError as e:
            self._fail(e)
            return
        self.pasted.clear()
        self._take(sets)
        self.known.emit(sets)

    def _take(self, sets: dict[str, list[str]]) -> None:
        self._sets = sets
        self.names.clear()
        self.names.addItems(list(sets))

    def chosen(self) -> tuple[str, list[str]]:
        """Return name and genes of what is pasted, or else of the set that is chosen."""
        pasted = [g for g in self.pasted.text().replace(",", " ").replace(";", " ").split() if g]
        if pasted:
            return PASTED, pasted
        name = self.names.currentText()
        return name, self._sets.get(name, [])

    def show_score(self) -> None:
        """Compute the score of the chosen set beside the window."""
        name, genes = self.chosen()
        if self._prediction is None or not genes:
            self.said.setText("paste genes, or load a GMT file")
            return
        self._scoring.ask(partial(_score, self._prediction, name, genes))

    def _browse(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(self, "Sets of genes", filter="Gene sets (*.gmt *.txt)")
        if chosen:
            self.load(Path(chosen))

    def _tell(self, _text: str = "") -> None:
        """Say how many of the genes the model knows, which it does not, and how well it predicts the others."""
        genes = self.chosen()[1]
        self.show_button.setEnabled(bool(genes) and self._prediction is not None)
        if not genes or self._prediction is None:
            self.said.setText("")
            return
        missing = known_genes(self._prediction, genes)[1]
        lacks = f"; not known: {', '.join(missing[:_NAMED])}{'…' if len(missing) > _NAMED else ''}" if missing else ""
        self.said.setText(set_trust_text(self._prediction, genes) + lacks)

    def _done(self, found: Any) -> None:
        prediction, name, values, genes = found
        if prediction is self._prediction:
            self.scored.emit(prediction, name, values, genes)

    def _fail(self, error: Exception) -> None:
        self.said.setText(sentence(error))


def _score(prediction: Any, name: str, genes: list[str]) -> tuple[Any, str, Any, list[str]]:
    return prediction, name, gene_set_score(prediction, genes), genes
