"""Small widgets that the docks share: choose a layer, a model, a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QSize, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QTableWidget,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from napari_peka.gui.recent import is_hub_id, recent_models, remember_model
from napari_peka.io.prediction import RESEARCH_USE

#: px; a dock wider than this takes the picture's room
DOCK_WIDTH = 350
DEMO = "demo"
#: where the documentation is; nothing is fetched from there but by a click
DOCS = "https://napari-peka.github.io/napari-peka/"
#: of links, readable on dark and light ground
_LINK = "#3f7fdf"
_BROWSE = ("Browse for a folder…", "Browse for a .zip…")
_HUB = "From the hub…"


def slim(box: QComboBox) -> QComboBox:
    """Let a box of long names shrink with its dock."""
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(8)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box


class Text(QLabel):
    """Words that wrap and are never cut: a form's layout gives a wrapped label too little height."""

    def __init__(self, style: str = "") -> None:
        super().__init__()
        self.setWordWrap(True)
        self.setStyleSheet(style)

        # later, not at once: a layout that is asked again while it lays out calls itself without end
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(0)
        self._later.timeout.connect(self._fit)

    def setText(self, text: str | None) -> None:
        """Show other words."""
        # Qt keeps a link in the colour of the theme in which it was written
        super().setText(None if text is None else text.replace("<a href", f'<a style="color: {_LINK}" href'))
        self._later.start()

    def resizeEvent(self, event: Any) -> None:
        """Wrap anew."""
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self._later.start()

    def minimumSizeHint(self) -> QSize:
        """Ask for no width: the name of a file would widen the dock, and the picture would jump beside it."""
        return QSize(0, super().minimumSizeHint().height())

    def _fit(self) -> None:
        if self.isVisible():
            self.setMinimumHeight(0)  # a label never asks for less than it was given before
            self.setMinimumHeight(max(0, self.heightForWidth(self.width())))

    def showEvent(self, event: Any) -> None:
        """Wrap for the width that it now has."""
        super().showEvent(event)
        self._later.start()


class Snug(Text):
    """Words that take no more room than they need, in panels within panels: these guess a wrapped label's height."""

    def _fit(self) -> None:
        if self.isVisible():
            self.setMinimumHeight(0)  # a label never asks for less than it was given before
            self.setFixedHeight(max(0, self.heightForWidth(self.width())))


def notice(page: str = "") -> QLabel:
    """Return the line that every dock carries, with a link to a place in the documentation where one is named."""
    label = QLabel(RESEARCH_USE)
    label.setWordWrap(True)  # or no dock could be slimmer than this line
    if page:
        # Qt keeps a link in the colour of the theme in which it was written
        link = f'<a style="color: {_LINK}" href="{DOCS}{page}">?&nbsp;Help</a>'
        label.setText(f"{RESEARCH_USE} &nbsp; {link}")
        label.setOpenExternalLinks(True)
        label.setToolTip(f"{DOCS}{page}, in your browser")
    label.setStyleSheet("font-size: 9pt;")  # no paler than other words: it is meant to be read
    return label


class _Scroll(QScrollArea):
    """Scrolls up and down only, so it asks for the width of what it holds: nothing is cut at the right."""

    def minimumSizeHint(self) -> QSize:
        """Return a width that holds the content and the bar, as far as a dock may be wide."""
        hint = super().minimumSizeHint()
        bar = self.verticalScrollBar().sizeHint().width()
        wide = self.widget().minimumSizeHint().width() + bar if self.widget() is not None else 0
        return QSize(max(hint.width(), min(wide, DOCK_WIDTH)), hint.height())

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """Ask anew when the content needs another width."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))


def scrolled(dock: QWidget, below: QWidget) -> QVBoxLayout:
    """Return the column for a dock's content, which scrolls where the window is too low; what is below it does not."""
    content, area = QWidget(), _Scroll()
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(content)
    whole = QVBoxLayout(dock)
    whole.setContentsMargins(0, 0, 0, 0)
    whole.addWidget(area)
    below.setContentsMargins(9, 2, 9, 4)  # as the column's own
    whole.addWidget(below)
    return QVBoxLayout(content)


def fold(title: str, *content: QWidget) -> QCollapsible:
    """Return a closed fold with widgets in it, which takes no more room than its title."""
    made = QCollapsible(title)
    made.layout().setContentsMargins(0, 0, 0, 0)
    made.layout().setSpacing(2)
    made.setCollapsedIcon("▸")
    made.setExpandedIcon("▾")
    for widget in content:
        made.addWidget(widget)
    return made


def with_button(widget: QWidget, button: QPushButton) -> QWidget:
    """Return a field with a button at its right."""
    row = QWidget()
    line = QHBoxLayout(row)
    line.setContentsMargins(0, 0, 0, 0)
    line.addWidget(widget, 1)
    line.addWidget(button)
    return row


class DropTable(QTableWidget):
    """A table onto which files and folders may be dropped.

    Attributes
    ----------
    dropped
        Emitted with the paths of dropped files and folders.
    """

    dropped = Signal(list)

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows, columns)
        self.setAcceptDrops(True)

    def dragEnterEvent(self, event: Any) -> None:
        """Take files."""
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dragMoveEvent(self, event: Any) -> None:
        """Take files."""
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Say which files were dropped."""
        paths = [Path(u.toLocalFile()) for u in event.mimeData().urls() if u.isLocalFile()]
        if paths:
            event.acceptProposedAction()
            self.dropped.emit(paths)


class LayerChooser(QComboBox):
    """A box of those layers of a viewer that are of use; follows the layer list.

    Parameters
    ----------
    viewer
        The viewer.
    accept
        Says whether a layer is of use.
    none
        Text of a first entry that stands for no layer; None: there is no such entry.
    label
        What a layer is called in the box; None: by its name.
    also
        Texts of further entries that stand for no layer, after the first.
    """

    changed = Signal()

    def __init__(
        self,
        viewer: Any,
        accept: Callable[[Any], bool],
        none: str | None = None,
        label: Callable[[Any], str] | None = None,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._viewer, self._accept = viewer, accept
        #: entries that stand for no layer
        self._words = [*([] if none is None else [none]), *also]
        self._label = label or (lambda layer: str(layer.name))
        self._shown: list[Any] = []
        slim(self)
        events = viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered, events.renamed):
            event.connect(self.refresh)
        self.currentIndexChanged.connect(self._tell)
        self.refresh()

    def layer(self) -> Any:
        """Return the chosen layer, or None."""
        item = self._item()
        return None if isinstance(item, str) else item

    def choose(self, layer: Any) -> None:
        """Choose a layer, if it is in the box."""
        if layer in self._shown:
            self.setCurrentIndex(self._shown.index(layer))

    def offer(self, word: str, instead_of: str = "") -> None:
        """Choose an entry that stands for no layer; it is added, in place of another one where that is there."""
        self._words = [x for x in self._words if x not in (word, instead_of)]
        self._words.append(word)
        self.refresh()
        self.setCurrentIndex(self._shown.index(word))

    def withdraw(self, word: str) -> None:
        """Take an entry away that stands for no layer."""
        if word in self._words:
            self._words.remove(word)
            self.refresh()

    def refresh(self, event: Any = None) -> None:
        """Take the layers as they are now; the newest is chosen when the chosen one is gone."""
        if not isalive(self):
            return
        before = self._item()
        self._shown = [*self._words, *(layer for layer in self._viewer.layers if self._accept(layer))]
        self.blockSignals(True)
        self.clear()
        self.addItems([x if isinstance(x, str) else self._label(x) for x in self._shown])
        last = 0 if self._words else len(self._shown) - 1
        self.setCurrentIndex(self._shown.index(before) if before in self._shown else last)
        self.blockSignals(False)
        if self._item() is not before:
            self.changed.emit()

    def _item(self) -> Any:
        i = self.currentIndex()
        return self._shown[i] if 0 <= i < len(self._shown) else None

    def _tell(self, _: int) -> None:
        self.changed.emit()


class ModelChooser(QComboBox):
    """A box of models: the demo, the bundles in the models folder, those used last, or one from anywhere.

    Parameters
    ----------
    hub
        Whether there is an entry for a model from the hub; whoever asks for it answers :attr:`hub_wanted`.

    Attributes
    ----------
    chosen
        Emitted with the name of another model, as :func:`load_model` takes it.
    hub_wanted
        Emitted when a person chooses the hub's entry; the model stays as it was.
    """

    chosen = Signal(str)
    hub_wanted = Signal()

    def __init__(self, hub: bool = False) -> None:
        super().__init__()
        self._actions = ([_HUB] if hub else []) + list(_BROWSE)
        self._added: list[str] = []
        self._last = DEMO
        slim(self)
        self.setToolTip("The model that reads the slide: the demo, bundles in the models folder, and those used last")
        self.refresh()
        self.activated.connect(self._picked)

    def refresh(self) -> None:
        """List what there is now; nothing is loaded."""
        from napari_peka.models.zoo import local_models

        self.clear()
        self.addItem(f"{DEMO} (embedded)", DEMO)
        for name, path in local_models().items():
            self.addItem(name, str(path))
        for name in dict.fromkeys([*self._added, *recent_models()]):
            if self.findData(name) < 0:
                self.addItem(name if is_hub_id(name) else Path(name).name, name)
                self.setItemData(self.count() - 1, name, Qt.ItemDataRole.ToolTipRole)
        for text in self._actions:
            self.addItem(text, None)
        self._choose(self._last)

    def showPopup(self) -> None:
        """List what there is now, and open."""
        self.refresh()
        super().showPopup()

    def model(self) -> str:
        """Return what :func:`load_model` takes."""
        return self._last

    def add(self, path: Path | str) -> None:
        """Add a bundle by its path, or a model of the hub that is on this disk, choose it and remember it."""
        name = str(path)
        if name not in self._added:
            self._added.append(name)
        remember_model(name)
        self._take(name)
        self.refresh()

    def take(self, name: str) -> None:
        """Choose a model by its name or path, as another dock named it."""
        if Path(name).exists() or is_hub_id(name):
            self.add(name)
        else:
            self._choose(name)

    def _choose(self, model: str) -> None:
        at = max(0, self.findData(model))
        self.setCurrentIndex(at)
        self._take(str(self.itemData(at)))

    def _take(self, name: str) -> None:
        if name != self._last:
            self._last = name
            self.chosen.emit(name)

    def _picked(self, index: int) -> None:
        text = self.itemText(index)
        if text not in self._actions:
            self._take(str(self.itemData(index)))
            return
        if text == _HUB:
            self._choose(self._last)
            self.hub_wanted.emit()
            return
        if text == _BROWSE[0]:
            chosen = QFileDialog.getExistingDirectory(self, "Folder of a model bundle (holds peka.json)")
        else:
            chosen, _ = QFileDialog.getOpenFileName(self, "Zipped model bundle", filter="Bundles (*.zip)")
        if chosen:
            self.add(Path(chosen))
        else:
            self._choose(self._last)


class FolderField(QWidget):
    """A folder as text, with a button to browse."""

    def __init__(self, tip: str) -> None:
        super().__init__()
        self.edit = QLineEdit()
        self.edit.setToolTip(tip)
        button = QPushButton("…")
        button.setFixedWidth(28)
        button.clicked.connect(self._browse)
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.edit, 1)
        line.addWidget(button)

    def folder(self) -> Path | None:
        """Return the folder, or None when the field is empty."""
        text = self.edit.text().strip()
        return Path(text).expanduser() if text else None

    def _browse(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "Folder for the result", self.edit.text()):
            self.edit.setText(chosen)
