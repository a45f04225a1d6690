"""Opening a slide for a dock: at once where a file is read lazily, beside the window where it is decoded as a whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_peka.core.errors import PekaError
from napari_peka.gui import layers
from napari_peka.gui.aside import Aside

#: pictures that are decoded as a whole, which takes seconds for a large one
PLAIN = (".jpg", ".jpeg", ".png")


class Opener(QObject):
    """Opens slides as layers, below what is there.

    Attributes
    ----------
    opened
        Emitted with the new layer.
    failed
        Emitted with the error of a file that is no slide.
    """

    opened = Signal(object)
    failed = Signal(object)

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self._aside = Aside(self)
        self._aside.done.connect(self._show)
        self._aside.failed.connect(self.failed)

    @property
    def busy(self) -> bool:
        """Whether a slide is being opened."""
        return self._aside.busy

    def open(self, path: Path) -> None:
        """Open a slide."""
        from napari_peka.io.slide import open_slide

        if path.suffix.lower() in PLAIN:
            self._aside.ask(partial(_decoded, path))
            return
        try:
            slide = open_slide(path)
        except PekaError as e:
            self.failed.emit(e)
            return
        self._show(slide)

    def _show(self, slide: Any) -> None:
        data, settings, _ = layers.slide_layer(slide)
        layer = self.viewer.add_image(data, **settings)
        self.viewer.layers.move(self.viewer.layers.index(layer), 0)  # below maps and regions
        layers.show_only(self.viewer, slide)
        if slide.resolution is not None:  # pixels would not be a scale
            layers.show_scale_bar(self.viewer)
        self.viewer.reset_view(layers=[layer])
        self.opened.emit(layer)


def _decoded(path: Path) -> Any:
    from napari_peka.io.slide import open_slide

    slide = open_slide(path)
    np.asarray(slide.pyramid[-1])
    return slide
