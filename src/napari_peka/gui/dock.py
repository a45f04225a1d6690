"""What all docks have in common: a width that leaves the picture its room, and one place in the window."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

from napari_peka.gui.choosers import DOCK_WIDTH


class Dock(QWidget):
    """A dock of this package.

    napari lays a new dock below those that are there, and with two or three nothing can be read any more: when it is
    first shown, it lies down on another one of ours as a tab. Where a person drags it later it stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setMaximumWidth(DOCK_WIDTH)
        self._placed = False
        self._place = QTimer(self)
        self._place.setSingleShot(True)
        self._place.setInterval(0)
        self._place.timeout.connect(self._join)

    def showEvent(self, event: Any) -> None:
        """Find a place."""
        super().showEvent(event)
        if not self._placed:
            self._placed = True
            self._place.start()

    def _join(self) -> None:
        own = _frame(self)
        if own is None or own.isFloating() or not isinstance(own.parent(), QMainWindow):
            return
        window = own.parent()
        area, lies_on = window.dockWidgetArea(own), window.tabifiedDockWidgets(own)
        for other in window.findChildren(QDockWidget):
            ours = other is not own and other.isVisible() and other.findChild(Dock) is not None
            if ours and not other.isFloating() and window.dockWidgetArea(other) == area and other not in lies_on:
                window.tabifyDockWidget(other, own)
                own.show()
                own.raise_()
                return


def _frame(widget: Any) -> Any:
    while widget is not None and not isinstance(widget, QDockWidget):
        widget = widget.parent()
    return widget
