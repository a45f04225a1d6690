"""One widget for any long job: run, cancel, progress, one status line, one error line.

The job is a plain function in a plain thread; the window asks ten times a second how far it is. Nothing is pushed from
the thread into Qt, so there is nothing to flood, to lose or to outlive the window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_peka.core.errors import PekaError
from napari_peka.core.progress import Cancelled, JobProgress, human_time
from napari_peka.gui import preferences
from napari_peka.gui.choosers import Text
from napari_peka.gui.words import in_the_window

#: ms between two looks at the job: ten a second is smooth to the eye and costs nothing
TICK_MS = 100
#: s that a closing window waits for its job; a block of tiles on a slow CPU is done by then
LEAVE_S = 10.0
_MAX = 1000

Job = Callable[[JobProgress], Any]


def sentence(error: BaseException) -> str:
    """Return an error as one line a person can read."""
    if isinstance(error, PekaError):
        return in_the_window(str(error))
    return f"unexpected: {type(error).__name__}: {' '.join(str(error).split())}"


class _Work:
    """A job in its thread, and how it ended. Every exception is kept: none can vanish in a thread."""

    def __init__(self, job: Job) -> None:
        self.progress = JobProgress()
        self.result: Any = None
        self.error: BaseException | None = None
        self._job = job
        self.thread = threading.Thread(target=self._run, name="peka-job", daemon=True)

    def _run(self) -> None:
        try:
            self.result = self._job(self.progress)
        except BaseException as e:  # noqa: BLE001 - told to the person by the panel
            self.error = e
        preferences.tidy_cache()

    def leave(self) -> None:
        """Stop the job and wait for it."""
        self.progress.cancel()
        self.thread.join(LEAVE_S)


class RunPanel(QWidget):
    """Runs one job at a time and shows how far it is.

    Parameters
    ----------
    title
        What the job is, in the words of the button, such as ``"Predict"``.
    viewer
        Whose activity dock and task manager follow the job; None: neither.
    pausable
        Whether there is a button by which the job waits.

    Attributes
    ----------
    asked
        Emitted when a person presses the run button; answer with :meth:`start`, or :meth:`fail`.
    ticked
        Emitted in the GUI thread at most ten times a second while the job runs, and once when it has ended.
    succeeded
        Emitted with the job's result.
    stopped
        Emitted when the job was cancelled.
    failed
        Emitted with the sentence that is shown.
    """

    asked = Signal()
    ticked = Signal()
    succeeded = Signal(object)
    stopped = Signal()
    failed = Signal(str)

    def __init__(
        self, title: str, viewer: Any = None, parent: QWidget | None = None, *, pausable: bool = False
    ) -> None:
        super().__init__(parent)
        self.title = title
        self._mirrored = viewer is not None
        self._here: dict[str, _Work] = {}
        # no method of this widget's own: it must still work while that is being destroyed
        self.destroyed.connect(_Guard(self._here).leave)
        self._mirror: _Mirror | None = None
        self.run_button = QPushButton(title)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setToolTip("Stop; what is finished is kept")
        self.pause_button = QPushButton("Pause")
        self.pause_button.setCheckable(True)
        self.pause_button.setToolTip("Let the work wait; it keeps its memory, and takes no time of the processor")
        self.pause_button.setVisible(pausable)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.status = Text()
        self.error = Text("color: #d9534f;")
        self.error.hide()
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button)
        buttons.addWidget(self.pause_button)
        buttons.addWidget(self.cancel_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(buttons)
        for widget in (self.bar, self.status, self.error):
            column.addWidget(widget)
        self._timer = QTimer(self)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._tick)
        self.run_button.clicked.connect(self._ask)
        self.cancel_button.clicked.connect(self.cancel)
        self.pause_button.toggled.connect(self._pause)
        self._idle()

    @property
    def _work(self) -> _Work | None:
        return self._here.get("work")

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self._work is not None

    def start(self, job: Job) -> None:
        """Run ``job(progress)`` in a thread; nothing happens while another one runs."""
        if self._work is not None:
            return
        preferences.apply()  # what a person set since the window opened
        work = self._here["work"] = _Work(job)
        self.error.hide()
        self.status.setText("starting")
        self.run_button.setEnabled(False)
        self.cancel_button.setEnabled(True)
        self.pause_button.setEnabled(True)
        self.bar.setRange(0, 0)
        self.bar.show()
        work.thread.start()
        self._mirror = _Mirror(self.title, work) if self._mirrored else None
        self._timer.start()

    def cancel(self) -> None:
        """Ask the job to stop; returns at once."""
        if self._work is not None:
            self._work.progress.cancel()
            self.cancel_button.setEnabled(False)
            self.pause_button.setEnabled(False)
            self.status.setText("stopping")

    def leave(self) -> None:
        """Stop the job and wait for it: for a window that closes."""
        if self._work is not None:
            self._work.leave()
            self._end()

    def fail(self, error: BaseException | str) -> None:
        """Show an error as one sentence."""
        text = error if isinstance(error, str) else sentence(error)
        self.error.setText(text)
        self.error.show()
        self.failed.emit(text)

    def _ask(self) -> None:
        self.error.hide()
        self.asked.emit()

    def _pause(self, on: bool) -> None:
        self.pause_button.setText("Go on" if on else "Pause")
        if self._work is not None:
            (self._work.progress.pause if on else self._work.progress.resume)()

    def _tick(self) -> None:
        work = self._work
        if work is None:
            return
        if not work.thread.is_alive():
            self._finish()
            return
        now = work.progress.snapshot()
        if now.stage and not work.progress.cancelled:
            words = [now.text, now.apart] if now.total else [now.stage]
            self.status.setText(" · ".join(["paused"] * work.progress.paused + [w for w in words if w]))
        fraction = now.done / now.total if now.total else None
        self.bar.setRange(0, _MAX if fraction is not None else 0)
        if fraction is not None:
            self.bar.setValue(round(fraction * _MAX))
        if self._mirror is not None:
            self._mirror.show(fraction, now.text.removeprefix(now.stage).strip() if now.total else now.stage)
        self.ticked.emit()

    def _finish(self) -> None:
        work = self._end()
        self.ticked.emit()
        if work.error is None:
            self.status.setText("; ".join(map(in_the_window, work.progress.notes)) or "done")
            self.succeeded.emit(work.result)
        elif isinstance(work.error, Cancelled):
            self.status.setText("cancelled")
            self.stopped.emit()
        else:
            self.status.setText("")
            self.fail(work.error)

    def _end(self) -> _Work:
        work = self._here.pop("work")
        self._timer.stop()
        if self._mirror is not None:
            self._mirror.close()
        self._mirror = None
        self._idle()
        return work

    def _idle(self) -> None:
        self.run_button.setEnabled(True)
        self.cancel_button.setEnabled(False)
        self.pause_button.setChecked(False)
        self.pause_button.setEnabled(False)
        self.bar.hide()

    def closeEvent(self, event: Any) -> None:
        """Stop the job when the panel is closed."""
        self.leave()
        super().closeEvent(event)


def run_summary(tiles: int, seconds: float, resumed: int) -> str:
    """Return what a finished prediction took, in one line."""
    text = f"done: {tiles} tiles in {human_time(seconds)}"
    return f"{text}, {resumed} of them from before" if resumed else text


class _Mirror:
    """A job in napari's activity dock and task manager, which asks before a window with a running job is closed.

    Only napari's own workers reach the task manager, so one of them calls this object and waits for the job. When the
    person closes the window all the same, the worker is told to quit, and the job with it.
    """

    def __init__(self, title: str, work: _Work) -> None:
        from napari.qt.threading import create_worker
        from napari.utils import progress

        self._title, self._work, self._text = title, work, ""
        self._bar = progress(total=_MAX, desc=title)
        self._worker = create_worker(self)
        self._worker.start()

    def show(self, fraction: float | None, text: str) -> None:
        """Move the bar, and say how far it is in few words: the activity dock gives the bar what they leave."""
        if text != self._text:
            self._text = text
            self._bar.set_description(f"{self._title}: {text}")
        if step := round((fraction or 0.0) * _MAX) - self._bar.n:
            self._bar.update(step)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def __call__(self) -> None:
        """Wait for the job; called in the worker's thread."""
        while self._work.thread.is_alive():
            self._work.thread.join(TICK_MS / 1000)
            if self._worker.abort_requested:
                self._work.progress.cancel()

    def __repr__(self) -> str:  # the words of napari's question
        return self._title


class _Guard(QObject):
    """Stops a panel's job when the panel is destroyed without having been closed, as with its viewer.

    A thing of Qt's that lives by itself: a plain function with arguments would be freed by Qt while it calls it.
    """

    _all: ClassVar[set[_Guard]] = set()

    def __init__(self, here: dict[str, _Work]) -> None:
        super().__init__()
        self._here = here
        self._all.add(self)

    def leave(self, *_: object) -> None:
        """Stop the job and wait for it."""
        if work := self._here.get("work"):
            work.leave()
        self._all.discard(self)
