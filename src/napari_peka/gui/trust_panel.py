"""How the doubt of a map is shown: what lies in its place, hatching, fading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QWidget

from napari_peka.gui.choosers import slim
from napari_peka.gui.doubt_layers import MAP, SHOWN, UNLIKE, WIDTH, Doubts, can_show

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction

_TIPS = {
    MAP: "The gene's predicted values",
    WIDTH: "In the map's place, in its unit: 9 of 10 measured values lie within that interval",
    UNLIKE: "In the map's place: percentile of a tile among the training data. From 99 on it is unlike them",
}
TOOLTIP = Qt.ItemDataRole.ToolTipRole
_UNKNOWN = "This map's model cannot tell: it was made by an older version, or without held-out data"


class TrustPanel(QWidget):
    """A form for :class:`Doubts`; it is seen where anything is known of a map's doubt.

    Attributes
    ----------
    changed
        Emitted with the new choice when a person makes it.
    """

    changed = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.shown = slim(QComboBox())
        for at, text in enumerate(SHOWN):
            self.shown.addItem(text)
            self.shown.setItemData(at, _TIPS[text], TOOLTIP)
        self.shown.setToolTip("The map, or how far to believe it as a map of its own")
        self.hatch = QCheckBox("hatch what is unlike the training data")
        self.hatch.setToolTip("Tiles less like the training data than 99 of 100 of these are like each other")
        self.fade = QCheckBox("fade doubtful tiles")
        self.fade.setToolTip(
            "A tile fades from the 95th percentile of unlikeness to the 99th, and where its 90 % interval is wider "
            "than the range of the gene's values on this map, up to three times as wide"
        )
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Show", self.shown)
        form.addRow("", self.hatch)
        form.addRow("", self.fade)
        self.shown.currentIndexChanged.connect(self._tell)
        for box in (self.hatch, self.fade):
            box.toggled.connect(self._tell)

    def doubts(self) -> Doubts:
        """Return what the form says."""
        return Doubts(self.fade.isChecked(), self.hatch.isChecked(), self.shown.currentText())

    def show_doubts(self, doubts: Doubts, prediction: Prediction | None) -> None:
        """Show how the doubt of a map is shown; nothing is emitted."""
        known = can_show(prediction)
        with QSignalBlocker(self.shown), QSignalBlocker(self.hatch), QSignalBlocker(self.fade):
            for at, text in enumerate(SHOWN):
                can = text == MAP or text in known
                self.shown.model().item(at).setEnabled(can)
                self.shown.setItemData(at, _TIPS[text] if can else _UNKNOWN, TOOLTIP)
            self.shown.setCurrentText(doubts.shown if doubts.shown in known else MAP)
            self.hatch.setChecked(doubts.hatch)
            self.fade.setChecked(doubts.fade)
        self.hatch.setEnabled(UNLIKE in known)
        self.setVisible(bool(known))

    def _tell(self, *_: object) -> None:
        self.changed.emit(self.doubts())
