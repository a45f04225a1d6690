"""What a training or a refit came to: the comparison in words, its report, and the button that uses the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from napari_peka.gui.choosers import Snug
from napari_peka.gui.session import Session

REPORT = Path("report") / "report.html"


def outcome_words(bundle: Path) -> str:
    """Return what the report of a bundle says first, and against what it is compared; may take a moment."""
    from napari_peka.models.card import BASELINE_NAMES
    from napari_peka.training.evaluate import read_report
    from napari_peka.training.report_words import Score, number, verdict

    report = read_report(bundle / "report")
    beside = []
    for name in ("frozen", "before"):
        score = Score.of((report.summary.get("baselines") or {}).get(name, {}).get("pcc_hvg50"))
        if score.known:
            who = BASELINE_NAMES[name]
            beside.append(f"{who[:1].upper()}{who[1:]}: PCC {number(score.mean)}, on the same spots and genes.")
    first, *others = verdict(report)
    return "<br>".join([f"<b>{first}</b>", *beside, *others])


class OutcomePanel(QWidget):
    """Shows the newest model that was made here."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.path: Path | None = None
        self.words = Snug()
        self.report_button = QPushButton("Open report")
        self.report_button.setToolTip("The whole report in the browser: every gene, maps, baselines, how it was split")
        self.use_button = QPushButton("Use this model")
        self.use_button.setToolTip("Choose it in all docks")
        line = QHBoxLayout()
        line.addWidget(self.report_button)
        line.addWidget(self.use_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.words)
        column.addLayout(line)
        self.report_button.clicked.connect(self._open)
        self.use_button.clicked.connect(self.use)
        self.hide()

    def show_result(self, result: tuple[Path, str]) -> None:
        """Show a finished bundle and what is said of it."""
        self.path, words = result
        self.words.setText(words)
        self.use_button.setEnabled(True)
        self.use_button.setText("Use this model")
        self.report_button.setEnabled((self.path / REPORT).exists())
        self.show()

    def use(self) -> None:
        """Choose the model in all docks."""
        if self.path is not None:
            self.session.model = str(self.path)
            self.use_button.setText("In use")
            self.use_button.setEnabled(False)

    def _open(self, *_: Any) -> None:
        if self.path is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.path / REPORT)))
