"""A long job in a process of its own: its memory is given back when it ends, and a crash of it is only an error here.

The job reports through the same :class:`Progress`; it is stopped the same way.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.context import SpawnContext
from typing import Any, TypeVar

from napari_peka.core import errors
from napari_peka.core.errors import PekaError
from napari_peka.core.progress import NULL, Cancelled, Progress, is_cancelled

T = TypeVar("T")
OnEvent = Callable[[Any], None]
OnStart = Callable[["RemoteProgress"], None]
#: seconds between two reports of a job: a viewer draws ten a second, more only fill the pipe
_EVERY_S = 0.05
#: seconds that a job gets to stop by itself
_PATIENCE_S = 10.0
_DONE, _FAILED, _EVENT = "done", "failed", "event"


class ChildFailed(PekaError, RuntimeError):
    """A job's process ended in a way that nobody foresaw."""


class RemoteProgress:
    """What a job in another process reports to; it is handed over when the process starts.

    Parameters
    ----------
    context
        Start method of the process that it goes to.
    """

    def __init__(self, context: SpawnContext) -> None:
        self.queue: Any = context.Queue()
        self.stopped: Any = context.Event()
        #: for jobs that can end early and well
        self.end_asked: Any = context.Event()
        #: while it is set the job waits at its next report
        self.paused: Any = context.Event()
        self._waiting, self._metrics, self._sent = 0, {}, 0.0  # type: tuple[int, dict[str, float], float]

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """See :class:`Progress`."""
        self._flush()
        self.queue.put(("stage", (name, total, done), {}))
        self._stop_if_asked()

    def advance(self, n: int = 1, **metrics: float) -> None:
        """See :class:`Progress`; several steps travel as one."""
        self._waiting += n
        self._metrics |= metrics
        if time.monotonic() - self._sent >= _EVERY_S:
            self._flush()
        self._stop_if_asked()

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self.queue.put(("note", (text,), {}))

    def event(self, value: Any) -> None:
        """Send anything that can be pickled to the caller's `on_event`."""
        self._flush()
        self.queue.put((_EVENT, (value,), {}))

    def done(self, value: Any) -> None:
        """Send the job's result as the last word."""
        self._flush()
        self.queue.put((_DONE, (value,), {}))

    def fail(self, e: BaseException) -> None:
        """Send an error as the last word."""
        self._flush()
        self.queue.put((_FAILED, ((type(e).__name__, str(e)),), {}))

    def _flush(self) -> None:
        if self._waiting:
            self.queue.put(("advance", (self._waiting,), self._metrics))
        self._waiting, self._metrics, self._sent = 0, {}, time.monotonic()

    def _stop_if_asked(self) -> None:
        while self.paused.is_set() and not self.stopped.is_set():
            self._flush()  # what was done before the pause is shown
            time.sleep(_EVERY_S)
        if self.stopped.is_set():
            raise Cancelled("stopped")


class Relay:
    """Hands on what a :class:`RemoteProgress` says, in a thread, while the block runs.

    A stop that the caller's progress asks for is handed back to the job.
    """

    def __init__(self, remote: RemoteProgress, progress: Progress, on_event: OnEvent | None = None) -> None:
        self._remote, self._progress, self._on_event = remote, progress, on_event
        self.last: tuple[str, Any] | None = None
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="peka-relay", daemon=True)

    @property
    def failed(self) -> BaseException | None:
        """The error that was the job's last word."""
        return _rebuilt(*self.last[1]) if self.last is not None and self.last[0] == _FAILED else None

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                name, args, kwargs = self._remote.queue.get(timeout=0.1)
            except queue.Empty:
                if self._over.is_set():
                    return
                continue
            if name in (_DONE, _FAILED):
                self.last = (name, *args)
                return
            try:
                if name == _EVENT:
                    if self._on_event:
                        self._on_event(*args)
                else:
                    getattr(self._progress, name)(*args, **kwargs)
            except BaseException as e:  # noqa: BLE001 - raised again in the caller's thread
                self.error = self.error or e
                self._remote.stopped.set()


def run_in_child(
    function: Callable[..., T], *args: Any, progress: Progress = NULL, on_event: OnEvent | None = None,
    on_start: OnStart | None = None, patience_s: float = _PATIENCE_S, **kwargs: Any
) -> T:  # fmt: skip
    """Call ``function(*args, progress=..., **kwargs)`` in a new process and return what it returns.

    Parameters
    ----------
    function
        A function of a module; it and all arguments are pickled, between processes of this program only.
    progress
        Where the job's reports go, called in a thread of this process.
    on_event
        Called with each value that the job gives to ``progress.event``.
    on_start
        Called with what the job reports to, once its process runs: to pause it, or to ask for an early end.
    patience_s
        Seconds that a stopped job gets to end by itself before its process is ended.

    Raises
    ------
    Cancelled
        If the job was stopped.
    PekaError
        What the job raised; :class:`ChildFailed` when it died.
    """
    context = multiprocessing.get_context("spawn")
    remote = RemoteProgress(context)
    process = context.Process(target=_work, args=(remote, function, args, kwargs), name="peka-job", daemon=True)
    process.start()
    stopped = was_paused = False
    with Relay(remote, progress, on_event) as relay:
        if on_start is not None:
            on_start(remote)
        while process.is_alive() and relay.last is None:
            process.join(0.05)
            # a job that says nothing for long, as while it imports, hears of a stop too
            stopped = is_cancelled(progress)
            if (paused := getattr(progress, "paused", None)) is not None and paused != was_paused:
                (remote.paused.set if paused else remote.paused.clear)()
                was_paused = paused
            if relay.error is not None or stopped:
                remote.stopped.set()
                process.join(patience_s)
                break
    if process.is_alive():
        process.join(0 if stopped else patience_s)
        process.terminate()
    process.join(patience_s)
    if process.is_alive():
        process.kill()
    process.join()
    code = process.exitcode
    process.close()
    if relay.error is not None:
        raise relay.error
    if relay.last is None and stopped:
        raise Cancelled("stopped")
    if relay.last is None:
        raise ChildFailed(f"the job's process ended without a word ({_why(code)})")
    if relay.failed is not None:
        raise relay.failed
    result: T = relay.last[1]
    return result


def _work(remote: RemoteProgress, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent says what to do
    threading.Thread(target=_end_with_the_parent, name="peka-parent", daemon=True).start()
    try:
        remote.done(function(*args, progress=remote, **kwargs))
    except BaseException as e:  # noqa: BLE001 - goes back to the parent
        remote.fail(e)


def _end_with_the_parent() -> None:
    """Leave no process behind when the one that started this was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _rebuilt(name: str, text: str) -> BaseException:
    if name == "Cancelled":
        return Cancelled(text)
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PekaError):
        return kind(text)
    if name == "MemoryError":
        return MemoryError(text)
    return ChildFailed(f"the job failed: {name}: {text}")


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"{name}: the system stopped it, most often for want of memory" if name == "SIGKILL" else name
    return f"exit code {code}"
