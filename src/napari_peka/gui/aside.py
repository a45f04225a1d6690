"""Something that takes a moment, beside the window: a thread whose result, or error, comes back in the GUI thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

#: ms between two looks at the thread
TICK_MS = 30


class Aside(QObject):
    """Runs one function at a time in a thread; of wishes that come meanwhile the newest is next, others are dropped.

    Attributes
    ----------
    done
        Emitted in the GUI thread with the result of the newest wish.
    failed
        Emitted with its exception.
    """

    done = Signal(object)
    failed = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._next: Callable[[], Any] | None = None
        self._thread: threading.Thread | None = None
        self._outcome: dict[str, Any] = {}
        self._timer = QTimer(self)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._tick)

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return self._thread is not None

    def ask(self, function: Callable[[], Any]) -> None:
        """Run a function that touches nothing of Qt or napari."""
        self._next = function
        if self._thread is None:
            self._start()

    def forget(self) -> None:
        """Let what runs end unheard."""
        self._next = _nothing if self._thread is not None else None

    def _start(self) -> None:
        function, self._next = self._next, None
        assert function is not None
        outcome = self._outcome = {"function": function}

        def run() -> None:
            try:
                outcome["result"] = function()
            except BaseException as e:  # noqa: BLE001 - told in the GUI thread
                outcome["error"] = e

        self._thread = threading.Thread(target=run, name="peka-aside", daemon=True)
        self._thread.start()
        self._timer.start()

    def _tick(self) -> None:
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        if self._next is not None:
            self._start()
            return
        self._timer.stop()
        if self._outcome["function"] is _nothing:
            return
        if "error" in self._outcome:
            self.failed.emit(self._outcome["error"])
        else:
            self.done.emit(self._outcome["result"])


def _nothing() -> None:
    return None
