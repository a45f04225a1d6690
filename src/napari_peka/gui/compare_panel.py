"""Up to three genes at once: blended in one picture, or side by side."""

from __future__ import annotations

from qtpy.QtCore import QStringListModel, Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QCompleter,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_peka.core.blend import PALETTES
from napari_peka.gui.choosers import Text, slim, with_button

PLACES = ("first", "second", "third")


class ComparePanel(QWidget):
    """Name genes, and ask for them.

    Attributes
    ----------
    wished
        Emitted with the number of a place that is to take the gene that is picked.
    blend_asked
        Emitted with the genes, first, second and third (empty text where there is none), and the palette's name.
    beside_asked
        Emitted with the genes that are named.
    """

    wished = Signal(int)
    blend_asked = Signal(list, str)
    beside_asked = Signal(list)

    def __init__(self) -> None:
        super().__init__()
        self._names = QStringListModel(self)
        self._wishes = QButtonGroup(self)
        self._wishes.setExclusive(False)
        self.fields: list[QLineEdit] = []
        self.picks: list[QPushButton] = []
        form = QFormLayout()
        for number, place in enumerate(PLACES):
            field = QLineEdit()
            field.setPlaceholderText("no gene")
            field.setClearButtonEnabled(True)
            field.setToolTip(f"Symbol of the {place} gene")
            completer = QCompleter(self._names, field)
            completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
            field.setCompleter(completer)
            pick = QPushButton("picked")
            pick.setToolTip("Take the gene that is picked in the table")
            self._wishes.addButton(pick, number)
            form.addRow(place.capitalize(), with_button(field, pick))
            self.fields.append(field)
            self.picks.append(pick)
        self.palette_box = slim(QComboBox())
        self.palette_box.addItems(list(PALETTES))
        self.palette_box.setToolTip("Colours of the first, second and third gene in a blend; they add up")
        form.addRow("Colours", self.palette_box)
        self.blend_button = QPushButton("Blend")
        self.blend_button.setToolTip("One picture: each gene in its colour, from its own lowest to highest percentile")
        self.beside_button = QPushButton("Side by side")
        self.beside_button.setToolTip("One view a gene and one of the slide, which move together; again: one view")
        self.beside_button.setCheckable(True)
        buttons = QHBoxLayout()
        buttons.addWidget(self.blend_button)
        buttons.addWidget(self.beside_button)
        self.said = Text()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(form)
        column.addLayout(buttons)
        column.addWidget(self.said)
        self._wishes.idClicked.connect(self.wished)
        self.blend_button.clicked.connect(self._blend)
        self.beside_button.clicked.connect(self._beside)

    def know(self, genes: list[str]) -> None:
        """Take the genes that are offered while one types."""
        self._names.setStringList(genes)

    def put(self, number: int, gene: str) -> None:
        """Name a gene at a place."""
        self.fields[number].setText(gene)

    def genes(self) -> list[str]:
        """Return what is named: three texts, empty where there is none."""
        return [field.text().strip() for field in self.fields]

    def _blend(self) -> None:
        self.blend_asked.emit(self.genes(), self.palette_box.currentText())

    def _beside(self, on: bool) -> None:
        self.beside_asked.emit([g for g in self.genes() if g] if on else [])
