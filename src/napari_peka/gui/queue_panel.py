"""More slides, one after another with one model: a table of files and what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QFormLayout,
    QGridLayout,
    QHeaderView,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_peka.core.errors import MissingResolution
from napari_peka.core.progress import JobProgress
from napari_peka.gui import predict_job
from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import DropTable, FolderField, Snug
from napari_peka.gui.places import default_folder
from napari_peka.gui.run_panel import RunPanel, sentence
from napari_peka.gui.words import in_the_window
from napari_peka.io.slide_list import slides_of

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction

WAITING, DONE = "waiting", "done"
_FILE, _STATE = range(2)


class QueueTable(DropTable):
    """Files and what became of them; files and folders may be dropped onto it."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.setHorizontalHeaderLabels(["file", "state"])
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setWordWrap(True)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.horizontalHeader().setStretchLastSection(True)
        self.setFixedHeight(150)
        self.setToolTip("Drop slides or folders of slides here; double-click one that is done to open it")


class QueuePanel(QWidget):
    """Predicts slides one after another; what is wrong with one does not stop the others.

    Parameters
    ----------
    viewer
        Whose activity dock and task manager follow the job.

    Attributes
    ----------
    asked
        Emitted when a person wants the slides predicted; answer with :meth:`run`.
    opened
        Emitted with the file of a slide and its :class:`napari_peka.Prediction`, when a person opens one that is done.
    """

    asked = Signal()
    opened = Signal(object, object)

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._results: list[Path | None] = []
        self._news: deque[tuple[int, str, Path | None]] = deque()
        #: rows of the slides in work, in their order
        self._rows: list[int] = []
        self._now: tuple[int, JobProgress] | None = None
        self._opening = Aside(self)
        self._wanted: Path | None = None
        self.table = QueueTable()
        self.files_button = QPushButton("Add files…")
        self.folder_button = QPushButton("Add folder…")
        self.folder_button.setToolTip("All slides that lie in a folder")
        self.again_button = QPushButton("Once more")
        self.again_button.setToolTip("Let the selected slides wait for another turn, as after a mistake was mended")
        self.remove_button = QPushButton("Remove")
        self.remove_button.setToolTip("Take the selected slides off the list; their files stay as they are")
        self.folder = FolderField("Folder of the results; empty: each result beside its slide")
        self.folder.edit.setPlaceholderText("beside each slide")
        self.words = Snug()
        self.panel = RunPanel("Predict all", viewer, pausable=True)
        self._lay_out()
        self.files_button.clicked.connect(self._browse_files)
        self.folder_button.clicked.connect(self._browse_folder)
        self.again_button.clicked.connect(self._once_more)
        self.remove_button.clicked.connect(self._remove)
        self.table.dropped.connect(self.add)
        self.table.itemDoubleClicked.connect(self._open)
        self.panel.asked.connect(self._ask)
        self.panel.ticked.connect(self._tick)
        self.panel.succeeded.connect(self._ended)
        self.panel.stopped.connect(self._stopped)
        self.panel.failed.connect(self._stopped)
        self._opening.done.connect(self._opened)
        self._opening.failed.connect(self._not_opened)

    def _lay_out(self) -> None:
        buttons = QGridLayout()
        four = (self.files_button, self.folder_button, self.again_button, self.remove_button)
        for i, button in enumerate(four):
            buttons.addWidget(button, i // 2, i % 2)
        form = QFormLayout()
        form.addRow("Output", self.folder)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.table)
        column.addLayout(buttons)
        column.addLayout(form)
        column.addWidget(self.words)
        column.addWidget(self.panel)

    @property
    def running(self) -> bool:
        """Whether slides are being predicted."""
        return self.panel.running

    @property
    def busy(self) -> bool:
        """Whether anything is at work."""
        return self.running or self._opening.busy

    def states(self) -> list[tuple[Path, str]]:
        """Return each file and what became of it."""
        return [(self._path(i), self.table.item(i, _STATE).text()) for i in range(self.table.rowCount())]

    def add(self, paths: list[Path]) -> None:
        """Add files, and the slides that lie in folders; what is on the list already is not added again."""
        there = {path for path, _ in self.states()}
        found = [p for path in map(Path, paths) for p in slides_of(path)]
        new = [p for p in dict.fromkeys(found) if p not in there]
        for path in new:
            row = self.table.rowCount()
            self.table.insertRow(row)
            name = QTableWidgetItem(path.name)
            name.setToolTip(str(path))
            name.setData(Qt.ItemDataRole.UserRole, str(path))
            self.table.setItem(row, _FILE, name)
            self.table.setItem(row, _STATE, QTableWidgetItem(WAITING))
            self._results.append(None)
        self.words.setText("" if found else "there is no slide among these files")

    def run(
        self, model: str, settings: dict[str, Any], parts: int, replace: bool, given: dict[Path, float] | None = None
    ) -> None:
        """Predict the slides that wait with these settings; the arguments are those of a wish.

        `given` holds µm per pixel by file, where a person said them.
        """
        self._rows = [i for i, result in enumerate(self._results) if result is None]
        paths = [self._path(i) for i in self._rows]
        if not paths:
            self.panel.fail("there is no slide that waits; add some first")
            return
        folder = self.folder.folder()
        for row in self._rows:
            self._say(row, WAITING)
        self._news.clear()
        self.panel.start(
            partial(_work, paths, model, settings, parts, replace, folder, self._news, self._rows, given or {})
        )
        self._lock(True)

    def leave(self) -> None:
        """Stop the job and wait for it: for a window that closes."""
        self.panel.leave()

    # -- while it runs -------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self.asked.emit()

    def _tick(self) -> None:
        while self._news:
            row, text, result = self._news.popleft()
            self._results[row] = result
            self._say(row, text)

    def _ended(self, *_: object) -> None:
        self._lock(False)
        n = len(self._rows)
        done = sum(self._results[i] is not None for i in self._rows)
        failed = f", {n - done} failed" if done < n else ""
        self.panel.status.setText(f"{done} of {n} done{failed}")

    def _stopped(self, *_: object) -> None:
        if self.running:
            return
        self._lock(False)
        for row in self._rows:
            text = self.table.item(row, _STATE).text()
            if text.endswith("%"):
                self._say(row, f"stopped at {text}; what is done is kept")

    def _lock(self, on: bool) -> None:
        for widget in (self.again_button, self.remove_button, self.files_button, self.folder_button, self.folder):
            widget.setEnabled(not on)

    def _say(self, row: int, text: str) -> None:
        item = self.table.item(row, _STATE)
        if item.text() != text:
            item.setText(text)
            item.setToolTip(text)

    # -- the list ------------------------------------------------------------------------------------------------

    def _path(self, row: int) -> Path:
        return Path(self.table.item(row, _FILE).data(Qt.ItemDataRole.UserRole))

    def _selected(self) -> list[int]:
        return sorted({i.row() for i in self.table.selectedIndexes()}, reverse=True)

    def _once_more(self) -> None:
        for row in self._selected():
            self._results[row] = None
            self._say(row, WAITING)

    def _remove(self) -> None:
        for row in self._selected():
            self.table.removeRow(row)
            del self._results[row]

    def _browse_files(self) -> None:
        chosen, _ = QFileDialog.getOpenFileNames(self, "Slides to predict")
        if chosen:
            self.add([Path(p) for p in chosen])

    def _browse_folder(self) -> None:
        if chosen := QFileDialog.getExistingDirectory(self, "A folder of slides"):
            self.add([Path(chosen)])

    # -- opening what is done ------------------------------------------------------------------------------------

    def _open(self, item: QTableWidgetItem) -> None:
        result = self._results[item.row()]
        if result is None:
            self.words.setText(f"{self._path(item.row()).name} is not done yet")
            return
        self._wanted = self._path(item.row())
        self.words.setText(f"opening {result.name}")
        self._opening.ask(partial(_read, result))

    def _opened(self, prediction: Prediction) -> None:
        self.words.setText("")
        self.opened.emit(self._wanted, prediction)

    def _not_opened(self, error: BaseException) -> None:
        self.words.setText(sentence(error))


def _read(result: Path) -> Prediction:
    from napari_peka.io.prediction import read_prediction

    return read_prediction(result)


class _Share(JobProgress):
    """A slide's progress within the job's: it is shown in the table as percent, and in the panel as it is."""

    def __init__(self, whole: JobProgress, title: str, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._whole, self._title, self._tell = whole, title, tell

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the whole job for a stop."""
        return self._whole.cancelled

    @property
    def waited_s(self) -> float:
        """Seconds that the whole job has waited in pauses: it is the one that waits."""
        return self._whole.waited_s

    @waited_s.setter
    def waited_s(self, seconds: float) -> None:
        pass

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a stage of this slide."""
        super().stage(name, total, done)
        self._told()
        self._whole.stage(f"{self._title}: {name}", total, done)

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Count steps of this slide."""
        super().advance(n, **metrics)
        self._told()
        self._whole.advance(n, **metrics)

    def _told(self) -> None:
        now = self.snapshot()
        self._tell(f"{100 * now.done / now.total:.0f} %" if now.total else now.stage)


def _work(
    paths: list[Path], model: str, settings: dict[str, Any], parts: int, replace: bool, folder: Path | None,
    news: deque[tuple[int, str, Path | None]], rows: list[int], given: dict[Path, float], progress: JobProgress,
) -> None:  # fmt: skip
    from napari_peka.trust.slide_qc import check_of
    from napari_peka.workflows.many import check_names, predict_many
    from napari_peka.workflows.predict import load_forward

    @contextmanager
    def progress_of(i: int, path: Path) -> Iterator[_Share]:
        yield _Share(progress, f"{i + 1}/{len(paths)} {path.name}", lambda text: news.append((rows[i], text, None)))

    progress.stage("loading the model")
    if folder is not None:
        check_names(paths)
    loaded = predict_job.load_local(model)
    wish = predict_job.Wish(Path(), None, None, model, parts=parts, settings=settings)
    config = wish.config(loaded)
    done = predict_many(
        paths, loaded, folder or (lambda slide: default_folder(slide)[0]), config=config, overwrite=replace,
        forward=load_forward(loaded, config, offline=True), progress_of=progress_of, mpp=given.get,
    )  # fmt: skip
    for row, outcome in zip(rows, done):
        if outcome.error is None:
            check = check_of(outcome.entry)
            doubt = f": {in_the_window(check.verdict)}" if check.against else ""
            news.append((row, DONE + doubt, Path(outcome.entry["output"])))
        elif isinstance(outcome.error, MissingResolution):
            said = f"{outcome.slide.name} does not say how large a pixel is; open it in the dock Slide and set it there"
            news.append((row, f"failed: {said}", None))
        else:
            news.append((row, f"failed: {sentence(outcome.error)}", None))
