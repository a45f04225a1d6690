"""A napari window on a screen, and pictures of it in both themes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import QPoint
from qtpy.QtWidgets import QProgressBar, QScrollArea, QWidget

import hands

PLUGIN = "napari-peka"
SIZE = (1400, 900)
#: a picture's name ends so by theme; mkdocs-material shows the one of the reader's theme
THEMES = {"dark": "", "light": "-light"}
MAX_BYTES = 300_000
#: share of the canvas that what is looked at fills
_ROOM = 0.92
#: 1 would choose a picture's colours by their pixels alone, 0 by how many colours there are
_POWER = 0.75


class Stage:
    """A window for one story.

    Parameters
    ----------
    output
        Folder of the pictures.
    size
        Of the window, in px.
    """

    def __init__(self, output: Path, size: tuple[int, int] = SIZE) -> None:
        self.output, self.size = output, size

    def __enter__(self) -> Stage:
        self.viewer = napari.Viewer(title="napari")
        self.viewer.theme = "dark"
        self.viewer.window.resize(*self.size)
        self._docks: dict[str, Any] = {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        if kind is not None:
            self._save(self.output / "failed.png", self.grab())
        for name in list(self._docks):
            self.leave(name)
        self.viewer.close()
        hands.pause(0.5)

    def dock(self, name: str) -> Any:
        """Open a dock by its name in the menu, in place of the others."""
        for other in list(self._docks):
            self.leave(other)
        window, dock = self.viewer.window.add_plugin_dock_widget(PLUGIN, name)
        self._docks[name] = window
        self.viewer.window.resize(*self.size)
        hands.pause(0.5)
        return dock

    def leave(self, name: str) -> None:
        """Close a dock."""
        self.viewer.window.remove_dock_widget(self._docks.pop(name))

    def look_at(self, low: Any, high: Any) -> None:
        """Fill the canvas with a part of the world, given by two corners (y, x) in µm."""
        low, high = np.asarray(low, float)[-2:], np.asarray(high, float)[-2:]
        height, width = self.viewer.window._qt_viewer.canvas.size
        self.viewer.camera.center = tuple((low + high) / 2)
        self.viewer.camera.zoom = _ROOM * min(np.array([height, width]) / (high - low))

    def bring_up(self, dock: QWidget, widget: QWidget) -> None:
        """Scroll a dock until a widget is at its top, or as near as it goes."""
        area = dock.findChild(QScrollArea)
        top = widget.mapTo(area.widget(), QPoint(0, 0)).y()
        area.verticalScrollBar().setValue(top - 4)
        hands.pause(0.2)

    def shoot(self, name: str) -> None:
        """Take the window in each theme."""
        for theme, ending in THEMES.items():
            self.viewer.theme = theme
            hands.pause(1.0)
            self._save(self.output / f"{name}{ending}.png", self.grab())
        self.viewer.theme = "dark"

    def grab(self) -> Image.Image:
        """Return what is seen."""
        return Image.fromarray(self.viewer.screenshot(canvas_only=False, flash=False)[..., :3])

    def _save(self, path: Path, picture: Image.Image) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for colours in (256, 192, 128, 96, 64):
            picture.quantize(palette=palette_of(picture, colours), dither=Image.Dither.NONE).save(path, optimize=True)
            if path.stat().st_size < MAX_BYTES:
                break
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {picture.width} x {picture.height}")


def palette_of(picture: Image.Image, colours: int) -> Image.Image:
    """Return an image whose palette fits a picture: a colour bar's few pixels count beside a slide's many."""
    pixels = np.asarray(picture).reshape(-1, 3)
    _, which, counts = np.unique(pixels >> 3, axis=0, return_inverse=True, return_counts=True)
    mean = np.column_stack([np.bincount(which.ravel(), channel) for channel in pixels.T]) / counts[:, None]
    each = np.repeat(mean.round().astype(np.uint8), np.ceil(counts**_POWER).astype(int), axis=0)
    return Image.fromarray(each[None]).quantize(colours, kmeans=2)


def share_done(dock: QWidget) -> float:
    """Return how far the bar of a dock's work is, 0 to 1; NaN when nothing is at work."""
    bar = next((b for b in dock.findChildren(QProgressBar) if b.isVisible()), None)
    if bar is None:
        return float("nan")
    return bar.value() / bar.maximum() if bar.maximum() > 0 else 0.0
