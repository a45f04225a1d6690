"""One small protocol by which every long job says how far it is and can be stopped."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


class Cancelled(Exception):
    """Somebody asked the running job to stop. What was finished is kept."""


@runtime_checkable
class Progress(Protocol):
    """Where a job reports. A loop that reports is a loop that can be stopped."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a stage of `total` steps (None: unknown), `done` of them by a former run."""

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Count `n` steps done. Raises :class:`Cancelled` when somebody asked for a stop."""

    def note(self, text: str) -> None:
        """Say something that a person should read (a warning of the job)."""


class NullProgress:
    """Reports to nobody and never stops."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """See :class:`Progress`."""

    def advance(self, n: int = 1, **metrics: float) -> None:
        """See :class:`Progress`."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""


NULL = NullProgress()


def is_cancelled(progress: Progress) -> bool:
    """Return whether somebody asked for a stop, as far as `progress` tells before its next report."""
    return getattr(progress, "cancelled", False) is True


#: metrics of a job on tiles: seconds that one takes to be read, and to be computed
READING, COMPUTING = "reading_s", "computing_s"


@dataclass(frozen=True)
class Snapshot:
    """State of a job at one moment: what every front end draws."""

    stage: str
    done: int
    total: int | None
    rate: float
    """Steps a second over the last seconds."""
    eta_s: float | None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """One line: ``tiles 120/4800 · 31.2/s · 2 min 30 s left``."""
        if self.total is None:
            return f"{self.stage} {self.done}" if self.done else self.stage
        parts = [f"{self.stage} {self.done}/{self.total}"]
        if self.rate > 0:
            parts.append(f"{rate_in_words(self.rate)}/s")
        if self.eta_s is not None and self.done < self.total:
            parts.append(f"{human_time(self.eta_s)} left")
        return " · ".join(parts)

    @property
    def apart(self) -> str:
        """What a step costs, where the job says so: ``reading 1.2 ms, computing 110 ms a tile``; else empty."""
        read, compute = self.metrics.get(READING), self.metrics.get(COMPUTING)
        return "" if read is None or compute is None else costs_in_words(read, compute)


def costs_in_words(reading_s: float, computing_s: float) -> str:
    """Return what a tile costs in reading and in computing, in words."""
    return f"reading {_milliseconds(reading_s)}, computing {_milliseconds(computing_s)} a tile"


def _milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2g} ms"


def rate_in_words(rate: float) -> str:
    """Return a number of steps a second as people read it."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


class JobProgress:
    """A :class:`Progress` that measures rate and ETA and can be paused and cancelled from any thread.

    The job calls :meth:`stage`, :meth:`advance`; a front end calls :meth:`snapshot` as often as it likes, or
    overrides :meth:`changed`, which is called in the job's thread.
    """

    #: seconds of history from which the rate is taken: long enough to be calm, short enough to follow
    WINDOW_S = 10.0
    #: seconds between two looks of a job that waits
    WAIT_S = 0.05

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._paused = threading.Event()
        #: seconds that the job has waited in pauses
        self.waited_s = 0.0
        self._marks: deque[tuple[float, int]] = deque()
        self._stage, self._done, self._total = "", 0, None  # type: tuple[str, int, int | None]
        self._metrics: dict[str, float] = {}
        self.notes: list[str] = []

    def cancel(self) -> None:
        """Ask the job to stop at its next report."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for a stop."""
        return self._cancel.is_set()

    def pause(self) -> None:
        """Let the job wait at its next report, until :meth:`resume` or :meth:`cancel`."""
        self._paused.set()

    def resume(self) -> None:
        """Let a paused job go on; rate and ETA leave the pause out."""
        self._paused.clear()

    @property
    def paused(self) -> bool:
        """Whether somebody asked the job to wait."""
        return self._paused.is_set()

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a stage; rate and ETA count from `done`."""
        with self._lock:
            self._stage, self._done, self._total = name, done, total
            self._marks = deque([(time.monotonic(), done)])
            self._metrics = {}
        self.changed()
        self._wait_if_asked()
        self._stop_if_asked()

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Count steps."""
        with self._lock:
            now = time.monotonic()
            self._done += n
            self._metrics.update(metrics)
            self._marks.append((now, self._done))
            while len(self._marks) > 2 and now - self._marks[1][0] > self.WINDOW_S:
                self._marks.popleft()
        self.changed()
        self._wait_if_asked()
        self._stop_if_asked()

    def note(self, text: str) -> None:
        """Keep a warning for the person; what was said once is not said again."""
        if text not in self.notes:
            self.notes.append(text)
            self.changed()

    def changed(self) -> None:
        """Hook for front ends that are pushed to. Called in the job's thread."""

    def snapshot(self) -> Snapshot:
        """Return the state now."""
        with self._lock:
            (t0, n0), (t1, n1) = (self._marks[0], self._marks[-1]) if self._marks else ((0.0, 0), (0.0, 0))
            rate = (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0
            left = None if self._total is None or rate <= 0 else max(0, self._total - self._done) / rate
            return Snapshot(self._stage, self._done, self._total, rate, left, dict(self._metrics))

    def _wait_if_asked(self) -> None:
        if not self._paused.is_set():
            return
        began = time.monotonic()
        while self._paused.is_set() and not self._cancel.wait(self.WAIT_S):
            pass
        waited = time.monotonic() - began
        with self._lock:
            self._marks = deque((t + waited, n) for t, n in self._marks)
            self.waited_s += waited

    def _stop_if_asked(self) -> None:
        if self._cancel.is_set():
            raise Cancelled(f"stopped during {self._stage or 'the start'}")


def human_time(seconds: float) -> str:
    """Return ``'45 s'``, ``'2 min 30 s'``, ``'1 h 05 min'`` or ``'3 days'``."""
    if not math.isfinite(seconds) or seconds >= 100 * 86400:
        return "over 100 days"
    s = round(max(seconds, 0.0))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 48 * 3600:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{round(s / 86400)} days"
