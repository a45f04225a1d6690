"""The plot of a check, by the mouse; a window is needed (Xvfb will do)."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
pytest.importorskip("pyqtgraph")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication

from napari_peka.gui.scatter_panel import ScatterPanel

LEFT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton


@pytest.fixture
def panel(qtbot):
    panel = ScatterPanel()
    qtbot.addWidget(panel)
    panel.resize(320, 240)
    panel.show()
    qtbot.waitExposed(panel)
    x = np.arange(10.0)
    y = np.where(x == 4, np.nan, x)
    panel.show_values(x, y, x < 7, "log1p CP10K")
    qtbot.wait(100)
    return panel


def drag(qtbot, panel, start, end) -> None:
    """Drag from one place of the plot to another, both in its values."""
    view = panel.plot.viewport()

    def send(kind, at, button, buttons) -> None:
        place = QPointF(panel.plot.mapFromScene(panel._box.mapViewToScene(QPointF(*at))))
        whole = QPointF(view.mapToGlobal(place.toPoint()))
        event = QMouseEvent(kind, place, whole, button, buttons, Qt.KeyboardModifier.NoModifier)
        QApplication.sendEvent(view, event)
        qtbot.wait(20)  # moves that come faster than 100 a second are dropped

    send(QEvent.Type.MouseButtonPress, start, LEFT, LEFT)
    for share in (0.3, 0.6, 1.0):
        at = tuple(a + share * (b - a) for a, b in zip(start, end))
        send(QEvent.Type.MouseMove, at, NONE, LEFT)
    send(QEvent.Type.MouseButtonRelease, end, LEFT, NONE)


def test_a_drag_chooses_what_it_holds(panel, qtbot):
    with qtbot.waitSignal(panel.chosen) as caught:
        drag(qtbot, panel, (1.5, 1.5), (5.5, 5.5))
    assert caught.args == [{2, 3, 5}]  # 4 has no prediction
    with qtbot.waitSignal(panel.chosen) as caught:
        drag(qtbot, panel, (9.4, 9.4), (7.5, 7.5))  # the other way round, beyond the region
    assert caught.args == [{8, 9}]


def test_what_is_drawn(panel):
    assert len(panel._dots.data) == 6
    assert len(panel._others.data) == 3
    panel.mark({1, 4, 99})
    assert len(panel._marked.data) == 1
    panel.clear()
    panel.mark({1})
    assert not len(panel._dots.data)
    assert not len(panel._marked.data)
    panel.show_values(np.full(3, np.nan), np.full(3, np.nan), np.ones(3, bool), "")
    panel.show_values(np.ones(3), np.ones(3), np.ones(3, bool), "")  # a constant gene
    assert len(panel._dots.data) == 3
