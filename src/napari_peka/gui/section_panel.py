"""The table of open sections: added by button or drop, shown, named, removed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qtpy.compat import isalive
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QGridLayout,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import DropTable, Snug
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.section_files import COLUMNS, Added, read_added, row_of
from napari_peka.gui.session import OpenSection, Session
from napari_peka.gui.words import in_the_window

_PATIENT = COLUMNS.index("patient")
_TIPS = {
    "patient": "Whose section it is: double-click to write it; patients can then be left out",
    "spots": "Spots under tissue that have counts and lie on the image",
    "pitch µm": "Distance between neighbouring spots in µm, as measured; Visium has 100, ST 200",
    "µm/px": "µm per pixel of the image at full resolution",
    "on tissue": "Share of the spots that lie on what looks like tissue in the image",
    "problems": "What a person should know; click the row to read it",
}
_FILES = "Sections and manifests (*.h5ad *.tsv.gz *.tsv *.csv);;All files (*)"


class SectionTable(DropTable):
    """Rows of sections; files may be dropped onto it."""

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(COLUMNS)
        for i, name in enumerate(COLUMNS):
            self.horizontalHeaderItem(i).setToolTip(_TIPS.get(name, ""))
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.verticalHeader().hide()
        self.setFixedHeight(150)
        self.setToolTip("Drop sections here: Space Ranger folders, .h5ad, SpatialData .zarr, ST .tsv.gz, a manifest")


class SectionPanel(QWidget):
    """Shows and edits a session's sections.

    Attributes
    ----------
    chosen
        Emitted when another row is selected.
    shown
        Emitted with the section that is to be shown over its image.
    """

    chosen = Signal()
    shown = Signal(object)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._waiting: list[Path] = []
        self._filling = False
        self._reading = Aside(self)
        self.table = SectionTable()
        self.files_button = QPushButton("Add files…")
        self.files_button.setToolTip("ST counts .tsv.gz, .h5ad, or a manifest .csv with the columns path, patient, …")
        self.folder_button = QPushButton("Add folder…")
        self.folder_button.setToolTip("A Space Ranger outs folder, a SpatialData .zarr, or a folder of sections")
        self.show_button = QPushButton("Show")
        self.show_button.setToolTip("The image and the spots over it, to see whether they lie on the tissue")
        self.remove_button = QPushButton("Remove")
        self.remove_button.setToolTip("Close the selected sections; their files stay as they are")
        self.words = Snug()
        self.error = Snug("color: #d9534f;")
        self.error.hide()
        buttons = QGridLayout()
        for i, button in enumerate((self.files_button, self.folder_button, self.show_button, self.remove_button)):
            buttons.addWidget(button, i // 2, i % 2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.table)
        column.addLayout(buttons)
        column.addWidget(self.words)
        column.addWidget(self.error)
        self.files_button.clicked.connect(self._browse_files)
        self.folder_button.clicked.connect(self._browse_folder)
        self.show_button.clicked.connect(self._show)
        self.remove_button.clicked.connect(self._remove)
        self.table.dropped.connect(self.add)
        self.table.itemSelectionChanged.connect(self._selected)
        self.table.itemChanged.connect(self._edited)
        self._reading.done.connect(self._read)
        self._reading.failed.connect(self._failed)
        session.sections_changed.connect(self.refresh)
        self.refresh()

    @property
    def busy(self) -> bool:
        """Whether sections are being read."""
        return self._reading.busy

    def add(self, paths: list[Path]) -> None:
        """Read what files, folders and manifests stand for, beside the window; those that are asked meanwhile wait."""
        self._waiting += map(Path, paths)
        self._next()

    def section(self) -> OpenSection | None:
        """Return the selected section, or the only one, or None."""
        rows = sorted({i.row() for i in self.table.selectedIndexes()})
        sections = self.session.sections()
        if rows and rows[0] < len(sections):
            return sections[rows[0]]
        return sections[0] if len(sections) == 1 else None

    def choose(self, name: str) -> None:
        """Select a section by its name."""
        for i, item in enumerate(self.session.sections()):
            if item.section.section_id == name:
                self.table.selectRow(i)

    def refresh(self) -> None:
        """Show what is open."""
        if not isalive(self):
            return
        sections, before = self.session.sections(), self.section()
        name = before.section.section_id if before is not None else None
        self._filling = True
        self.table.setRowCount(len(sections))
        for i, item in enumerate(sections):
            for j, text in enumerate(row_of(item.section)):
                cell = QTableWidgetItem(text)
                if j != _PATIENT:
                    cell.setFlags(cell.flags() & ~Qt.ItemFlag.ItemIsEditable)
                if item.section.warnings:
                    cell.setToolTip(in_the_window("\n".join(item.section.warnings)))
                self.table.setItem(i, j, cell)
        self.table.resizeColumnsToContents()
        self._filling = False
        if name is not None:
            self.choose(name)
        self._selected()

    def _next(self) -> None:
        if self._waiting and not self._reading.busy:
            paths, self._waiting = self._waiting, []
            self._say(None)
            self.words.setText(f"reading {paths[0].name}{f' and {len(paths) - 1} more' if paths[1:] else ''}")
            self._reading.ask(partial(read_added, paths, self.session.sections()))

    def _read(self, added: Added) -> None:
        if added.sections:
            self.session.add_sections(added.sections)
            self.choose(added.sections[-1].section.section_id)
        self._selected()
        if added.refused:
            more = f" (and {len(added.refused) - 1} more could not be added)" if added.refused[1:] else ""
            self._say(f"{added.refused[0]}{more}")
        self._next()

    def _failed(self, error: BaseException) -> None:
        self._selected()
        self._say(sentence(error))
        self._next()

    def _selected(self) -> None:
        item, n = self.section(), len(self.session.sections())
        self.show_button.setEnabled(item is not None)
        self.remove_button.setEnabled(bool(self.table.selectedIndexes()))
        if item is not None and item.section.warnings:
            self.words.setText(in_the_window("<br>".join(f"⚠ {w}" for w in item.section.warnings)))
        elif item is not None:
            self.words.setText(f"{item.section.section_id}: nothing wrong was found")
        else:
            self.words.setText("Add sections to begin." if not n else f"{n} sections; select one")
        if not self._filling:
            self.chosen.emit()

    def _edited(self, cell: QTableWidgetItem) -> None:
        if not self._filling and cell.column() == _PATIENT:
            self.session.sections()[cell.row()].name_patient(cell.text().strip())
            self.session.sections_changed.emit()

    def _show(self) -> None:
        if (item := self.section()) is not None:
            self.shown.emit(item)

    def _remove(self) -> None:
        rows = {i.row() for i in self.table.selectedIndexes()}
        names = [x.section.section_id for i, x in enumerate(self.session.sections()) if i in rows]
        self.table.clearSelection()
        for name in names:
            self.session.remove_section(name)

    def _browse_files(self) -> None:
        chosen, _ = QFileDialog.getOpenFileNames(self, "Paired sections or a manifest", filter=_FILES)
        if chosen:
            self.add([Path(p) for p in chosen])

    def _browse_folder(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "A section's folder, or a folder of sections"):
            self.add([Path(chosen)])

    def _say(self, text: str | None) -> None:
        self.error.setVisible(bool(text))
        self.error.setText(text or "")
