"""Using a window as a person does: by the words that are seen in it, with the mouse and the keyboard.

Tests and the script that takes the documentation's pictures find widgets here, and not by the names that a dock's code
has for them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QLabel,
    QLineEdit,
    QTableView,
    QWidget,
)
from superqt import QCollapsible

LIMIT_S = 1800.0
#: px; a fold that is open is higher
_OPEN_PX = 15


class NotSeen(LookupError):
    """There is no such thing to be seen."""


def wait(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Let the window live until something is so."""
    end = monotonic() + limit_s
    while not condition():
        if monotonic() > end:
            raise TimeoutError("it took too long")
        QApplication.processEvents()
        QTest.qWait(20)


def pause(seconds: float) -> None:
    """Let the window live for a while."""
    end = monotonic() + seconds
    wait(lambda: monotonic() > end)


# -- finding -----------------------------------------------------------------------------------------------------


def button(parent: QWidget, text: str) -> QAbstractButton:
    """Return the button, box or choice with these words on it."""
    return _one(parent, QAbstractButton, lambda w: w.text().replace("&", "") == text, text)


def row(parent: QWidget, label: str) -> Any:
    """Return what stands beside a label in a form; of a field with a button, the field."""
    for form in parent.findChildren(QFormLayout):
        for i in range(form.rowCount()):
            words = form.itemAt(i, QFormLayout.ItemRole.LabelRole)
            field = form.itemAt(i, QFormLayout.ItemRole.FieldRole)
            if words is None or field is None or field.widget() is None:
                continue
            if _said(words.widget()) == label and field.widget().isVisible():
                inner = field.widget()
                return inner if type(inner) is not QWidget else inner.layout().itemAt(0).widget()
    raise NotSeen(label)


def line(parent: QWidget, placeholder: str) -> QLineEdit:
    """Return the line for text with this hint in it."""
    return _one(parent, QLineEdit, lambda w: w.placeholderText() == placeholder, placeholder)


def lines_of(parent: QWidget, placeholder: str) -> list[QLineEdit]:
    """Return all lines for text with this hint in them, from top to bottom."""
    return _seen(parent, QLineEdit, lambda w: w.placeholderText() == placeholder)


def table(parent: QWidget, column: str) -> QTableView:
    """Return the table that has a column of this name."""

    def has(w: QTableView) -> bool:
        model = w.model()
        names = (
            str(model.headerData(i, Qt.Orientation.Horizontal)) for i in range(model.columnCount() if model else 0)
        )
        return column in names

    return _one(parent, QTableView, has, column)


def says(parent: QWidget, words: str) -> bool:
    """Whether these words are to be read anywhere in a dock."""
    return any(words in w.text() for w in parent.findChildren(QLabel) if w.isVisible())


# -- doing -------------------------------------------------------------------------------------------------------


def click(widget: QWidget) -> None:
    """Click a button, in its middle; a box or a choice where its words begin."""
    if not widget.isEnabled():
        raise NotSeen(f"{_said(widget)!r} is grey")
    at = widget.rect().center()
    if isinstance(widget, QAbstractButton) and widget.isCheckable():
        at = QPoint(8, at.y())
    QTest.mouseClick(widget, Qt.MouseButton.LeftButton, pos=at)


def press(parent: QWidget, text: str) -> None:
    """Click the button with these words on it."""
    click(button(parent, text))


def pick_menu(widget: QWidget, text: str) -> None:
    """Choose from the menu that a button opens."""
    for action in widget.menu().actions():  # type: ignore[attr-defined]
        if text in action.text():
            action.trigger()
            return
    raise NotSeen(text)


def unfold(parent: QWidget, title: str) -> QWidget:
    """Open a fold, wait for it, bring it into view, and return it."""
    fold = _one(parent, QCollapsible, lambda w: w.text() == title, title)
    if not fold.isExpanded():
        click(fold.toggleButton())
    wait(lambda: fold.content().height() > _OPEN_PX)
    pause(0.4)  # it slides open
    return fold


def choose(box: QComboBox, words: str) -> None:
    """Take the first entry of a box in which these words are."""
    for i in range(box.count()):
        if words in box.itemText(i):
            box.setCurrentIndex(i)
            box.activated.emit(i)
            return
    raise NotSeen(words)


def write(field: QWidget, text: str) -> None:
    """Write into a line or a number's field, in place of what is there."""
    number = isinstance(field, QAbstractSpinBox)
    if not number and not isinstance(field, QLineEdit):
        field = field.findChild(QLineEdit)
    field.setFocus()
    field.selectAll()  # type: ignore[attr-defined]
    QTest.keyClicks(field, text)
    if number:
        QTest.keyClick(field, Qt.Key.Key_Return)


def find_gene(parent: QWidget, gene: str) -> None:
    """Search a gene, and take the first that is found."""
    field = line(parent, "search a gene")
    field.setFocus()
    field.clear()
    QTest.keyClicks(field, gene)
    QTest.keyClick(field, Qt.Key.Key_Return)
    pause(0.3)


class Answers:
    """Answers what a file dialog would ask, with one path, for as long as a ``with`` lasts."""

    _NAMES = ("getOpenFileName", "getSaveFileName", "getExistingDirectory", "getOpenFileNames")

    def __init__(self, *paths: Any) -> None:
        self.paths = [str(p) for p in paths]
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Answers:
        one, all_ = self.paths[0], list(self.paths)
        answers = ((one, ""), (one, ""), one, (all_, ""))
        for name, answer in zip(self._NAMES, answers):
            self._before[name] = getattr(QFileDialog, name)
            setattr(QFileDialog, name, staticmethod(lambda *_, _answer=answer, **__: _answer))
        return self

    def __exit__(self, *_: object) -> None:
        for name, before in self._before.items():
            setattr(QFileDialog, name, before)


def draw(viewer: Any, corners_um: Any) -> None:
    """Draw a polygon in the selected layer of shapes, click by click; corners are (y, x) in µm."""
    canvas = viewer.window._qt_viewer.canvas.native
    size = np.array([canvas.height(), canvas.width()])
    for y, x in (np.asarray(corners_um) - viewer.camera.center[-2:]) * viewer.camera.zoom + size / 2:
        at = QPoint(round(x), round(y))
        QTest.mouseMove(canvas, at)
        pause(0.05)
        QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=at)
        pause(0.1)
    QTest.mouseDClick(canvas, Qt.MouseButton.LeftButton, pos=at)
    pause(0.2)


# -- how they are found ------------------------------------------------------------------------------------------


def _seen(parent: QWidget, kind: type, fits: Callable[[Any], bool]) -> list[Any]:
    found = [w for w in parent.findChildren(kind) if w.isVisible() and fits(w)]
    return sorted(found, key=lambda w: w.mapTo(parent, QPoint(0, 0)).y())


def _one(parent: QWidget, kind: type, fits: Callable[[Any], bool], words: str) -> Any:
    found = _seen(parent, kind, fits)
    if not found:
        raise NotSeen(words)
    return found[0]


def _said(widget: QWidget | None) -> str:
    return widget.text() if isinstance(widget, QLabel | QAbstractButton) else ""
