"""Watches the main thread: this package's code never holds it for long, or the window freezes.

A thread looks at the main thread's stack a few hundred times a second. What counts is processor time of the main thread
while the innermost frame that is either this package's or the window's (napari, vispy, Qt's bindings, …) is this
package's: what napari itself takes to paint is not ours, what numpy takes for us is. Processor time, not the clock, so
that a busy machine makes no difference. Imports are not counted: they come once.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import napari_peka

OURS = str(Path(napari_peka.__file__).parent)
#: what the window calls; a test that calls a workflow itself is not the window
DOORS = str(Path(OURS) / "gui")
LAZY = str(Path(OURS) / "io" / "lazy.py")
#: parts of paths of code that draws, or that waits for the person
THEIRS = (
    "/napari/",
    "/vispy/",
    "/psygnal/",
    "/app_model/",
    "/pytestqt/",
    "/pyqtgraph/",
    "/superqt/",
    "/qtpy/",
    "/npe2/",
)
_IMPORT = "importlib._bootstrap"
LIMIT_S = 0.05
_EVERY_S = 0.004


@dataclass
class Watchdog:
    """Use it in a ``with`` block, in the main thread.

    Attributes
    ----------
    holds
        Seconds for which this package held the main thread, and where it was then, longest first.
    """

    limit_s: float = LIMIT_S
    holds: list[tuple[float, str]] = field(default_factory=list)

    def __enter__(self) -> Watchdog:
        self._main = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._main)
        self._over = threading.Event()
        self._collecting = False
        gc.callbacks.append(self._collect)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        gc.callbacks.remove(self._collect)
        self.holds.sort(reverse=True)

    def _collect(self, phase: str, info: object) -> None:
        self._collecting = phase == "start"

    def _watch(self) -> None:
        begun: tuple[int, float] | None = None  # which call of this package, and when it was first seen
        where, last = "", 0.0
        while True:
            over = self._over.wait(_EVERY_S)
            now = time.clock_gettime(self._clock)
            seen = None if over or self._collecting else _look(self._main)
            if begun is not None and seen is not None and seen[0] == begun[0]:
                where, last = seen[1], now
                continue
            if begun is not None and last - begun[1] > self.limit_s:
                self.holds.append((last - begun[1], where))
            begun = None if seen is None else (seen[0], now)
            where, last = "" if seen is None else seen[1], now
            if over:
                return


def _look(thread: int) -> tuple[int, str] | None:
    """Return which call of this package is at work since the window called it, and where it is; or None.

    None while the window's own code is at work, while something is imported, and while a slide is read because napari
    asked for a picture: that is napari's own choice (its setting for asynchronous loading).

    No frame is kept, and nothing here lets another thread run: what dies with a frame must die in its own thread.
    """
    at, found, places = sys._current_frames().get(thread), 0, []
    theirs, door = False, ""
    while at is not None:
        name = at.f_code.co_filename
        if _IMPORT in name or name == LAZY:  # a module's own body counts as an import, wherever it is called from
            return None
        theirs = theirs or (bool(places) and any(part in name for part in THEIRS))
        if not found and any(part in name for part in THEIRS):
            return None
        if name.startswith(OURS) and not theirs:
            found, door = id(at), name
        if len(places) < 8:
            places.append(f"  {name}:{at.f_lineno} {at.f_code.co_name}")
        at = at.f_back
    return (found, "\n".join(places)) if door.startswith(DOORS) else None
