"""Progress on a terminal: a rich bar on standard error, a plain line now and then where that is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from napari_peka.core.progress import JobProgress

#: seconds between lines in a log file
LOG_EVERY_S = 10.0


class ConsoleProgress(JobProgress):
    """Shows a job on standard error.

    Parameters
    ----------
    title
        What the job works on, such as the slide's file name.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), console=self._console, transient=True
        )
        self._task = self._bar.add_task(title, total=None)
        self._said, self._last = 0, 0.0

    def changed(self) -> None:
        """Draw the state; called in the job's thread."""
        while self._said < len(self.notes):
            self._line(f"warning: {self.notes[self._said]}")
            self._said += 1
        state, now = self.snapshot(), time.monotonic()
        if self._console.is_terminal:
            text = f"{self.title}: {state.text}"
            self._bar.update(self._task, description=text, completed=state.done, total=state.total)
        elif state.total is not None and now - self._last >= LOG_EVERY_S:
            self._last = now
            self._line(state.text)

    def _line(self, text: str) -> None:
        self._console.print(f"{self.title}: {text}", markup=False)


@contextmanager
def console_progress(title: str) -> Iterator[ConsoleProgress]:
    """Show a job's progress on standard error while the block runs."""
    progress = ConsoleProgress(title)
    if not progress._console.is_terminal:
        yield progress
        return
    with progress._bar:
        yield progress
