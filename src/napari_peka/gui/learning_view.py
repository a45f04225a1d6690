"""The left-out section while a model learns: measured and predicted spots of one gene, and the curves beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QVBoxLayout, QWidget

from napari_peka.gui import section_layers
from napari_peka.gui.choosers import Snug, slim
from napari_peka.gui.curves import Curves
from napari_peka.gui.session import OpenSection, Session
from napari_peka.workflows.watch import Glance, Part


class LearningView(QWidget):
    """Draws what a training tells of itself.

    Parameters
    ----------
    viewer, session
        Where the spots are drawn, and which sections are open.

    Attributes
    ----------
    slide_wanted
        Emitted with the section whose slide is to lie under the spots.
    """

    slide_wanted = Signal(object)

    def __init__(self, viewer: Any, session: Session) -> None:
        super().__init__()
        self.viewer, self.session = viewer, session
        self.part: Part | None = None
        self.glance: Glance | None = None
        self._rows: Any = None
        self._item: OpenSection | None = None
        self.curves = Curves()
        self.gene = slim(QComboBox())
        self.gene.setToolTip("The gene whose spots are drawn; it can be changed while training runs")
        self.words = Snug()
        form = QFormLayout()
        form.addRow("Gene", self.gene)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.curves)
        column.addLayout(form)
        column.addWidget(self.words)
        self.gene.activated.connect(self._picked)

    def hear(self, event: Part | Glance) -> None:
        """Take what the training sends."""
        if isinstance(event, Part):
            self._begin(event)
        elif self.part is not None and event.part == self.part.number:
            self.glance = event
            self.curves.add(event)
            self.draw()

    def pick(self, gene: str) -> None:
        """Show another gene."""
        if (at := self.gene.findText(gene)) >= 0:
            self.gene.setCurrentIndex(at)
            self.draw()

    def layers_now(self) -> dict[str, Any]:
        """Return the layers of measured and predicted spots, by kind."""
        return {kind: x for x in self.viewer.layers if (kind := section_layers.kind_of(x))}

    def _picked(self) -> None:
        self.session.gene = self.gene.currentText()
        self.draw()

    def _begin(self, part: Part) -> None:
        wished = [self.gene.currentText(), self.session.gene or ""]
        self.part, self.glance = part, None
        self.curves.begin(part)
        self.gene.clear()
        self.gene.addItems(sorted(part.genes))
        gene = next((g for g in wished if g in part.genes), part.genes[0])
        self.gene.setCurrentIndex(self.gene.findText(gene))
        self._choose_section(part)
        where = f"{part.name} left out" if part.number < part.of or part.of == 1 else part.name
        self.words.setText(f"training {part.number} of {part.of}: {where}")
        if self._item is not None:
            self._make_layers(part, self._item)

    def _choose_section(self, part: Part) -> None:
        """Take the section with the most spots shown, of those that are open."""
        names, counts = np.unique(part.section, return_counts=True)
        known = {x.section.section_id: x for x in self.session.sections()}
        for name in names[np.argsort(-counts)].tolist():
            if name in known:
                self._item, self._rows = known[name], part.section == name
                return
        self._item = self._rows = None

    def _make_layers(self, part: Part, item: OpenSection) -> None:
        """Put both kinds of spots on the section's slide, in place of those of the training before."""
        section = item.section
        for old in self.layers_now().values():
            self.viewer.layers.remove(old)
        width = section.slide.shape[1] * section.slide.mpp[1]
        for kind, beside in ((section_layers.MEASURED, width), (section_layers.PREDICTED, 0.0)):
            data, settings, _ = section_layers.learning_layer(
                kind, section.section_id, section.slide.fingerprint, part.centre_um[self._rows],
                section.spot_diameter_um, section.slide.mpp, beside,
            )  # fmt: skip
            self.viewer.add_points(data, **settings)
        self.slide_wanted.emit(item)

    def draw(self) -> None:
        """Colour both kinds of spots by the chosen gene, on the scale of what was measured."""
        part, glance, gene = self.part, self.glance, self.gene.currentText()
        if part is None or gene not in part.genes:
            return
        at = part.genes.index(gene)
        there = self.layers_now()
        if self._rows is not None:
            measured = part.measured[self._rows, at].astype(float)
            limits = section_layers.limits_of(measured)
            if layer := there.get(section_layers.MEASURED):
                section_layers.show_learning(layer, gene, part.unit, measured, limits)
            if glance is not None and (layer := there.get(section_layers.PREDICTED)):
                when = f", epoch {glance.epoch}" if glance.epoch else ", untrained"
                values = glance.predicted[self._rows, at].astype(float)
                section_layers.show_learning(layer, gene, part.unit, values, limits, when)
        if glance is not None:
            said = f"{gene}: PCC {glance.pcc[at]:.2f} on {part.name}"
            if np.isfinite(part.attainable[at]):
                said += f", attainable {part.attainable[at]:.2f}"
            self.words.setText(f"training {part.number} of {part.of}, epoch {glance.epoch}<br>{said}")


def spots_layer_of(viewer: Any, name: str) -> Any:
    """Return the layer that shows a section's spots, or None."""
    of: Callable[[Any], str | None] = section_layers.spots_of
    return next((x for x in viewer.layers if of(x) == name), None)
