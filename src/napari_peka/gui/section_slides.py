"""A section's slide as a layer under its spots, opened beside the window: a whole JPEG takes seconds to decode."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_peka.gui import layers
from napari_peka.gui.aside import Aside
from napari_peka.gui.session import OpenSection


class SectionSlides(QObject):
    """Shows one section's slide at a time.

    All slides have their upper left corner at the same place, so other slides, and the spots on them, are hidden.

    Attributes
    ----------
    failed
        Emitted with the error of a slide that cannot be opened.
    """

    failed = Signal(object)

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self._opening = Aside(self)
        self._opening.done.connect(self._opened)
        self._opening.failed.connect(self.failed)

    @property
    def busy(self) -> bool:
        """Whether a slide is being opened."""
        return self._opening.busy

    def show(self, item: OpenSection) -> None:
        """Show a section's slide; it is made, at the bottom, where there is none."""
        fingerprint = item.section.slide.fingerprint
        layers.show_only(self.viewer, item.section.slide)
        if layers.layer_of_slide(self.viewer, fingerprint) is not None:
            self._opening.forget()
        else:
            slide = item.section.slide
            self._opening.ask(partial(_open, slide.path, slide.mpp))
        self._look_at(fingerprint)

    def _opened(self, slide: Any) -> None:
        if layers.layer_of_slide(self.viewer, slide.fingerprint) is not None:
            return
        data, settings, _ = layers.slide_layer(slide)
        active = self.viewer.layers.selection.active
        layer = self.viewer.add_image(data, **settings)
        self.viewer.layers.move(self.viewer.layers.index(layer), 0)
        if active is not None:
            self.viewer.layers.selection.active = active
        layers.show_scale_bar(self.viewer)
        self._look_at(slide.fingerprint)

    def _look_at(self, fingerprint: str) -> None:
        """Show all that lies on a section's slide, and beside it while a model learns."""
        own = [x for x in self.viewer.layers if x.visible and layers.fingerprint_of(x) == fingerprint]
        self.viewer.reset_view(layers=own or None)


def _open(path: Any, mpp: tuple[float, float]) -> Any:
    """Open a slide by a handle of its own, for the layer stays when its section is closed, and decode what is shown."""
    from napari_peka.io.slide import open_slide

    slide = open_slide(path, mpp=mpp)
    np.asarray(slide.pyramid[-1])
    return slide
