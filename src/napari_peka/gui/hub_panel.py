"""Fetching something from the hub, in two steps: first its size is asked for, then a button says what it fetches."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLineEdit, QPushButton, QVBoxLayout, QWidget

from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import Snug
from napari_peka.gui.run_panel import RunPanel, sentence
from napari_peka.models import hub
from napari_peka.models.archive import SPEC_FILE, TENSOR_FILE

if TYPE_CHECKING:
    from napari_peka.models.hub import HubEntry

OFFLINE = "Offline (Preferences, or HF_HUB_OFFLINE): nothing is fetched."


class HubPanel(QWidget):
    """Asks the hub for a repository and fetches it; nothing goes over the network before a button is pressed.

    Parameters
    ----------
    ask_name
        Whether a person types which repository; else :meth:`set_target` says it.

    Attributes
    ----------
    fetched
        Emitted with the repository's name once it is on this disk.
    """

    fetched = Signal(str)

    def __init__(self, ask_name: bool) -> None:
        super().__init__()
        self._files: tuple[str, ...] = (TENSOR_FILE, SPEC_FILE)
        self._revision: str | None = None
        self._entry: HubEntry | None = None
        self._asking = Aside(self)
        self.name = QLineEdit()
        self.name.setPlaceholderText("user/name")
        self.name.setToolTip("A model bundle on huggingface.co")
        self.name.setVisible(ask_name)
        self.look_button = QPushButton("How large is it? (asks the hub)")
        self.look_button.setToolTip("Needs the network; only its size and terms are asked for")
        self.words = Snug()
        self.panel = RunPanel("Fetch")
        self.panel.run_button.setToolTip("Needs the network; kept in the hub's own cache")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.name, self.look_button, self.words, self.panel):
            column.addWidget(widget)
        self.name.textChanged.connect(self._renamed)
        self.name.returnPressed.connect(self.look)
        self.look_button.clicked.connect(self.look)
        self._asking.done.connect(self._told)
        self._asking.failed.connect(self._not_told)
        self.panel.asked.connect(self._fetch)
        self.panel.succeeded.connect(self._fetched)
        self._renamed()

    @property
    def busy(self) -> bool:
        """Whether the hub is being asked, or something is being fetched."""
        return self._asking.busy or self.panel.running

    def set_target(self, repo: str, files: list[str], revision: str | None) -> None:
        """Say what is wanted: the first of the files that the repository has."""
        self._files, self._revision = tuple(files), revision
        self.name.setText(repo)
        self._renamed()

    def look(self) -> None:
        """Ask the hub how large it is, and on what terms it is given."""
        repo = self.name.text().strip().removeprefix("https://huggingface.co/").strip("/")
        if repo.count("/") != 1:
            self.words.setText("A model of the hub is named user/name.")
            return
        if hub.is_offline():
            self.words.setText(OFFLINE)
            return
        self.words.setText("asking the hub…")
        first = SPEC_FILE not in self._files
        self._asking.ask(partial(hub.look_up, repo, self._files, revision=self._revision, first=first))

    def leave(self) -> None:
        """Stop fetching, for a window that closes."""
        self.panel.leave()

    def _renamed(self, *_: object) -> None:
        self._entry = None
        self._asking.forget()
        self.panel.hide()
        self.words.setText(OFFLINE if hub.is_offline() else "")

    def _told(self, entry: HubEntry) -> None:
        self._entry = entry
        self.words.setText(entry_in_words(entry))
        self.panel.run_button.setText(f"Fetch {size_in_words(entry.size_bytes)} over the network")
        self.panel.status.setText("")
        self.panel.error.hide()
        self.panel.show()

    def _not_told(self, error: BaseException) -> None:
        self.words.setText(sentence(error))

    def _fetch(self) -> None:
        if self._entry is not None:
            self.panel.start(partial(_fetch, self._entry))

    def _fetched(self, repo: str) -> None:
        self.panel.hide()
        self.words.setText(f"{repo} is on this disk")
        self.fetched.emit(repo)


def size_in_words(size: int | None) -> str:
    """Return a number of bytes as people write it."""
    if size is None:
        return "a file of unknown size"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def entry_in_words(entry: HubEntry) -> str:
    """Return what the hub says of a repository."""
    licence = f"licence {entry.licence}" if entry.licence else "no licence is stated"
    text = f"{entry.repo}: {size_in_words(entry.size_bytes)}, {licence}"
    if entry.gated:
        text += (
            f'<br>gated: ask for access on <a href="{entry.page}">its page</a>, then set a token with '
            "<code>hf auth login</code>"
        )
    return text


def _fetch(entry: HubEntry, progress: object) -> str:
    hub.fetch(entry, progress)  # type: ignore[arg-type]
    return entry.repo
