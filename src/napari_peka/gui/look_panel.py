"""Colours, contrast and scale of a map, as a form."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QFormLayout, QHBoxLayout, QWidget
from superqt.cmap import QColormapComboBox

from napari_peka.core.units import linear_unit
from napari_peka.gui.look import COLORMAPS, Look


class LookPanel(QWidget):
    """A form for a :class:`Look`.

    Attributes
    ----------
    changed
        Emitted with the new look when a person changes it.
    """

    changed = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.colours = QColormapComboBox(filterable=False)
        self.colours.addColormaps(list(COLORMAPS.values()))
        self.colours.setToolTip("Perceptually uniform colours that colour-blind eyes can read")
        self.fade = QCheckBox("low values fade")
        self.fade.setToolTip("Nearly transparent where a gene is low, so that the tissue is seen; no value, no colour")
        self.low, self.high = _percent(), _percent()
        self.low.setToolTip("Percentile of the gene's values on this map at which colours begin")
        self.high.setToolTip("Percentile of the gene's values on this map at which colours end")
        self.locked = QCheckBox("same colours for all genes")
        self.locked.setToolTip("Keep the range of this gene for those that are picked next, in the map's unit")
        self.smooth = QCheckBox("smooth")
        self.smooth.setToolTip("Colours run from tile to tile. There is one value a tile either way")
        self.linear = QCheckBox()
        self.linear.setToolTip(
            "Values without their logarithm: e to the predicted mean logarithm, which is lower than a mean of counts"
        )
        range_ = QWidget()
        line = QHBoxLayout(range_)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.low)
        line.addWidget(self.high)
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Colours", self.colours)
        form.addRow("", self.fade)
        form.addRow("Percentiles", range_)
        for box in (self.locked, self.smooth, self.linear):
            form.addRow("", box)
        self.colours.currentIndexChanged.connect(self._tell)
        self.low.valueChanged.connect(self._tell)
        self.high.valueChanged.connect(self._tell)
        for box in (self.fade, self.locked, self.smooth, self.linear):
            box.toggled.connect(self._tell)
        self.show_look(Look(), "")

    def look(self) -> Look:
        """Return what the form says."""
        low, high = self.low.value(), self.high.value()
        return Look(
            colormap=list(COLORMAPS)[max(0, self.colours.currentIndex())],
            fade=self.fade.isChecked(),
            percentiles=(min(low, high - 0.1), high) if high > 0.1 else (0.0, 0.1),
            locked=self.locked.isChecked(),
            smooth=self.smooth.isChecked(),
            linear=self.linear.isChecked(),
        )

    def show_look(self, look: Look, unit: str) -> None:
        """Show a look of a map in some unit; nothing is emitted."""
        blocked = self.blockSignals(True)
        self.colours.setCurrentIndex(list(COLORMAPS).index(look.colormap))
        self.fade.setChecked(look.fade)
        self.low.setValue(look.percentiles[0])
        self.high.setValue(look.percentiles[1])
        self.locked.setChecked(look.locked)
        self.smooth.setChecked(look.smooth)
        self.linear.setChecked(look.linear)
        without = linear_unit(unit)
        self.linear.setText(f"linear ({without})" if without else "linear")
        self.linear.setEnabled(without is not None)
        self.blockSignals(blocked)

    def _tell(self, *_: object) -> None:
        if not self.signalsBlocked():
            self.changed.emit(self.look())


def _percent() -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(0, 100)
    box.setDecimals(1)
    box.setSuffix(" %")
    box.setKeyboardTracking(False)
    return box
