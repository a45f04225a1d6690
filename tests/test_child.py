"""A job in a process of its own: what it says, how it is stopped, how it fails."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from napari_peka.core.child import ChildFailed, run_in_child
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import Cancelled, JobProgress


def counts(n, progress):
    progress.stage("counting", n)
    for i in range(n):
        progress.advance(value=float(i))
    progress.note("that was it")
    progress.event({"last": n - 1})
    return n * 2


def waits(progress):
    progress.stage("waiting", 10)
    progress.advance()
    while True:
        progress.advance(0)


def bad_input(progress):
    raise SettingError("n must be odd")


def a_bug(progress):
    raise ZeroDivisionError("division by zero")


def dies(progress):
    os.kill(os.getpid(), signal.SIGKILL)


class Stops(JobProgress):
    """Asks for a stop as soon as the job has begun."""

    def changed(self):
        if self.snapshot().done:
            self.cancel()


def test_results_reports_and_events_come_back():
    progress, events = JobProgress(), []
    assert run_in_child(counts, 50, progress=progress, on_event=events.append) == 100
    state = progress.snapshot()
    assert (state.stage, state.done, state.total, state.metrics["value"]) == ("counting", 50, 50, 49.0)
    assert progress.notes == ["that was it"]
    assert events == [{"last": 49}]


def test_a_stop_reaches_the_job():
    with pytest.raises(Cancelled):
        run_in_child(waits, progress=Stops())


def test_errors_of_a_person_keep_their_kind_and_words():
    with pytest.raises(SettingError, match=r"^n must be odd$"):
        run_in_child(bad_input)


def test_a_bug_is_named():
    with pytest.raises(ChildFailed, match="ZeroDivisionError: division by zero"):
        run_in_child(a_bug)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_killed_job_is_an_error_here():
    with pytest.raises(ChildFailed, match="SIGKILL"):
        run_in_child(dies)
