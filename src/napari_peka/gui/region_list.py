"""The names of a slide's regions, to be read and changed; no name is typed into napari's table of features."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QListWidget, QListWidgetItem

#: rows that are seen at once; more are scrolled
_ROWS = 5


class RegionList(QListWidget):
    """Lists names, a row a drawn area.

    Attributes
    ----------
    renamed
        Emitted with a row and the name that was typed there.
    chosen
        Emitted with the row that a person clicked.
    """

    renamed = Signal(int, str)
    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.setToolTip("Double-click to rename; areas of one name are one region. Click to find one on the slide")
        self.itemChanged.connect(self._changed)
        self.itemClicked.connect(self._clicked)
        self.show_names([])

    def show_names(self, names: list[str]) -> None:
        """Show these names; nothing is emitted."""
        if names == [self.item(i).text() for i in range(self.count())]:
            self.setVisible(bool(names))
            return
        self.blockSignals(True)
        self.clear()
        for name in names:
            item = QListWidgetItem(name)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsEditable)
            self.addItem(item)
        self.blockSignals(False)
        self.setVisible(bool(names))
        height = max(self.sizeHintForRow(0), self.fontMetrics().height() + 4)
        self.setFixedHeight(height * min(len(names), _ROWS) + 2 * self.frameWidth() + 4)

    def _changed(self, item: Any) -> None:
        self.renamed.emit(self.row(item), item.text().strip())

    def _clicked(self, item: Any) -> None:
        self.chosen.emit(self.row(item))
