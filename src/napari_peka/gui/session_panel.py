"""Saving what is open, and bringing it back, from within a dock."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from napari_peka.core.errors import PekaError
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import Text
from napari_peka.gui.run_panel import sentence
from napari_peka.gui.session import session_of
from napari_peka.gui.session_file import ENDING, read_session, save_session, show_session

_FILTER = f"Session (*{ENDING})"


class SessionPanel(QWidget):
    """Save and open sessions.

    Parameters
    ----------
    viewer
        The viewer whose session it is.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._session = session_of(viewer)
        self._opening = Aside(self)
        self.save_button = QPushButton("Save…")
        self.save_button.setToolTip("Slides, maps, genes, colours, regions, sections and view, as JSON beside the data")
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Bring back what was saved; what is open stays")
        self.said = Text()
        row = QHBoxLayout()
        row.addWidget(self.save_button)
        row.addWidget(self.open_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.said)
        self.save_button.clicked.connect(self.ask_save)
        self.open_button.clicked.connect(self.ask_open)
        self._opening.done.connect(self._opened)
        self._opening.failed.connect(self._fail)

    def ask_save(self) -> None:
        """Ask for a file, and save to it."""
        slides = self._session.slides()
        start = slides[0].path.with_suffix(ENDING) if slides else Path.home() / f"session{ENDING}"
        chosen, _ = QFileDialog.getSaveFileName(self, "Save the session", str(start), _FILTER)
        if chosen:
            self.save(Path(chosen))

    def ask_open(self) -> None:
        """Ask for a file, and open it."""
        chosen, _ = QFileDialog.getOpenFileName(self, "Open a session", filter=_FILTER)
        if chosen:
            self.open(Path(chosen))

    def save(self, path: Path) -> None:
        """Save what is open."""
        try:
            problems = save_session(self._session, path)
        except PekaError as e:
            self._fail(e)
            return
        self.said.setText("; ".join([f"saved: {path.name}", *problems]))

    def open(self, path: Path) -> None:
        """Open a session beside the window, then show it."""
        self.said.setText(f"opening {path.name}")
        self._opening.ask(partial(read_session, path))

    def _opened(self, opened: Any) -> None:
        show_session(self._session, opened)
        self.said.setText("<br>".join(opened.problems) or "all is back")

    def _fail(self, error: Exception) -> None:
        self.said.setText(sentence(error))
