"""Quick refit: a model's gene head fitted anew on the sections that are open, in seconds once they were embedded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_peka.config import RefitConfig
from napari_peka.core.progress import JobProgress
from napari_peka.gui.choosers import Snug
from napari_peka.gui.outcome_panel import outcome_words
from napari_peka.gui.run_panel import RunPanel
from napari_peka.gui.session import Session


class RefitPanel(QWidget):
    """One button, and what it will do.

    Attributes
    ----------
    asked
        Emitted when a person presses it; answer with :meth:`refit`, or ``panel.fail``.
    finished
        Emitted with (folder of the bundle, words about it).
    """

    asked = Signal()
    finished = Signal(object)

    def __init__(self, viewer: Any, session: Session) -> None:
        super().__init__()
        self.session = session
        self.words = Snug()
        self.panel = RunPanel("Quick refit", viewer)
        self.panel.run_button.setToolTip(
            "Correct the chosen model's gene head by the spots of the sections that are open; what it sees in a tile "
            "stays, so maps that were predicted with it need no new inference"
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.words)
        column.addWidget(self.panel)
        self.panel.asked.connect(self.asked)
        self.panel.succeeded.connect(self.finished)
        self.refresh()

    def refresh(self, *_: Any) -> None:
        """Say which model would be refitted on what."""
        n = len(self.session.sections())
        name = Path(self.session.model).name
        on = f"on {n} open section{'s' * (n != 1)}" if n else "once sections are open"
        self.words.setText(f"Fit the gene head of <b>{name}</b> anew {on}; seconds, once their spots were embedded.")

    def refit(self, output: Path, config: RefitConfig, overwrite: bool) -> None:
        """Refit the chosen model in a thread."""
        sections = [x.section for x in self.session.sections()]
        if not sections:
            self.panel.fail("there is no section; add one first")
            return
        self.panel.start(partial(_refit, self.session.model, sections, config, output, overwrite))


def free_name(folder: Path, name: str) -> Path:
    """Return a path in a folder that nothing has."""
    path, number = folder / name, 2
    while path.exists() or path.with_name(f"{path.name}.partial").exists():
        path, number = folder / f"{name}-{number}", number + 1
    return path


def _refit(
    name: str, sections: list[Any], config: RefitConfig, output: Path, overwrite: bool, progress: JobProgress
) -> tuple[Path, str]:
    progress.stage("loading the model")
    from napari_peka.models.zoo import load_model
    from napari_peka.workflows.refit import refit

    refit(load_model(name), sections, config, output=output, overwrite=overwrite, progress=progress)
    return output, outcome_words(output)
