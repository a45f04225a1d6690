"""Where a slide's tissue is: shown on it, and found anew as a person moves the threshold."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QFormLayout, QWidget

from napari_peka.core.errors import PekaError
from napari_peka.gui import layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import Text
from napari_peka.gui.run_panel import sentence

#: highest threshold that can be chosen: the darkest tissue lies about 60 from glass
MOST = 60.0


class TissuePanel(QWidget):
    """Show the tissue of a slide.

    Parameters
    ----------
    viewer
        The viewer.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        self._layer: Any = None
        self._finding = Aside(self)
        self.shown = QCheckBox("show tissue")
        self.shown.setToolTip("Where tiles are predicted: what is found to be tissue on the slide's overview")
        self.threshold = QDoubleSpinBox()
        self.threshold.setRange(0.0, MOST)
        self.threshold.setDecimals(1)
        self.threshold.setSpecialValueText("automatic")
        self.threshold.setKeyboardTracking(False)
        self.threshold.setToolTip(
            "How far a colour must be from the glass (Lab distance) to be tissue: higher finds less. Kept with the "
            "slide, and Predict takes it too; 0: automatic"
        )
        self.said = Text()
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Tissue", self.shown)
        form.addRow("Threshold", self.threshold)
        form.addRow("", self.said)
        self.shown.toggled.connect(self._toggled)
        self.threshold.valueChanged.connect(self._moved)
        self._finding.done.connect(self._found)
        self._finding.failed.connect(self._fail)
        viewer.layers.events.removed.connect(self._layer_removed)

    def follow(self, layer: Any) -> None:
        """Speak of another slide's layer, or of none."""
        self._layer = layer
        self.setEnabled(layers.slide_of(layer) is not None)
        self.said.setText("")
        with QSignalBlocker(self.threshold):
            self.threshold.setValue(layers.tissue_threshold_of(layer) or 0.0)
        self._layer_removed()

    def _toggled(self, on: bool) -> None:
        if on:
            self._find()
            return
        self._finding.forget()
        self.said.setText("")
        if (old := self._overlay()) is not None:
            self.viewer.layers.remove(old)

    def _moved(self, value: float) -> None:
        if layers.slide_of(self._layer) is not None:
            layers.set_tissue_threshold(self._layer, value or None)
            if self.shown.isChecked():
                self._find()
            else:
                self.shown.setChecked(True)

    def _find(self) -> None:
        slide = layers.slide_of(self._layer)
        if slide is not None:
            self.said.setText("looking for tissue")
            self._finding.ask(partial(_with_tissue, slide, layers.tissue_threshold_of(self._layer)))

    def _found(self, found: Any) -> None:
        if found[0] is not layers.slide_of(self._layer) or not self.shown.isChecked():
            return
        slide, tissue = found
        data, settings, _ = layers.tissue_layer(slide, tissue)
        if (old := self._overlay()) is not None:
            old.data = data
        else:
            active = self.viewer.layers.selection.active
            self.viewer.add_image(data, **settings)
            self.viewer.layers.selection.active = active
        mm2 = "" if tissue.area_mm2 is None else f"{tissue.area_mm2:.1f} mm², "
        what = f"{mm2}{tissue.share:.0%} of the slide" if tissue.share else "no tissue was found"
        self.said.setText(f"{what} (threshold {tissue.threshold:.1f})")

    def _overlay(self) -> Any:
        slide = layers.slide_of(self._layer)
        return next(
            (x for x in self.viewer.layers if slide is not None and layers.is_part_of(x, "tissue", slide)), None
        )

    def _layer_removed(self, event: Any = None) -> None:
        if isalive(self):
            with QSignalBlocker(self.shown):
                self.shown.setChecked(self._overlay() is not None)

    def _fail(self, error: PekaError) -> None:
        self.said.setText(sentence(error))


def _with_tissue(slide: Any, threshold: float | None) -> tuple[Any, Any]:
    from napari_peka.infer.tissue import find_tissue

    return slide, find_tissue(slide, threshold=threshold)
