"""Progress: rate, time left, resumed work, stop, threads; and how a terminal and a log file show it."""

from __future__ import annotations

import io
import itertools
import re
import threading
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from napari_peka import console as console_module
from napari_peka.console import console_progress
from napari_peka.core import progress as progress_module
from napari_peka.core.progress import NULL, Cancelled, JobProgress, Progress, Snapshot, human_time


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress_module, "time", made)
    monkeypatch.setattr(console_module, "time", made)
    return made


def test_all_kinds_of_progress_fit_the_protocol():
    assert isinstance(NULL, Progress)
    assert isinstance(JobProgress(), Progress)
    with console_progress("a", console(terminal=False)) as job:
        assert isinstance(job, Progress)


def test_rate_and_time_left(clock):
    job = JobProgress()
    job.stage("predicting", 100)
    assert job.snapshot() == Snapshot("predicting", 0, 100, 0.0, None)
    for _ in range(5):
        clock.now += 2
        job.advance(10, loss=0.5)
    now = job.snapshot()
    assert (now.done, now.rate, now.eta_s, now.metrics) == (50, 5.0, 10.0, {"loss": 0.5})
    assert now.text == "predicting 50/100 · 5.0/s · 10 s left"


def test_what_a_former_run_did_counts_as_done_and_not_for_the_rate(clock):
    job = JobProgress()
    job.stage("predicting", 1000, done=900)
    assert job.snapshot().text == "predicting 900/1000"
    clock.now += 10
    job.advance(10)
    assert (job.snapshot().done, job.snapshot().rate, job.snapshot().eta_s) == (910, 1.0, 90.0)


def test_the_rate_follows_the_last_seconds_and_a_stage_begins_anew(clock):
    job = JobProgress()
    job.stage("predicting", 10_000)
    for step in (1,) * 20 + (50,) * 20:  # a slow start, as when the encoder is loaded
        clock.now += 1
        job.advance(step)
    assert job.snapshot().rate == 50
    job.stage("drawing")
    assert job.snapshot() == Snapshot("drawing", 0, None, 0.0, None)
    assert job.snapshot().text == "drawing"


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 500)), min_size=1, max_size=60),
    total=st.none() | st.integers(0, 5000),
    before=st.integers(0, 1000),
)
def test_numbers_stay_sane_whatever_happens(steps, total, before):
    clock = Clock()
    with mock.patch.object(progress_module, "time", clock):
        job = JobProgress()
        job.stage("x", total, done=before)
        for seconds, n in steps:
            clock.now += seconds
            job.advance(n)
        now = job.snapshot()
    assert now.done == before + sum(n for _, n in steps)
    speeds = [n / seconds for seconds, n in steps]
    assert min(speeds) * 0.999 <= now.rate <= max(speeds) * 1.001
    assert now.eta_s is None or now.eta_s >= 0
    assert total is not None or now.eta_s is None
    assert "-" not in now.text
    assert len(job._marks) <= len(steps) + 1


def test_memory_does_not_grow_with_the_number_of_reports(clock):
    job = JobProgress()
    job.stage("x", 10**6)
    for _ in range(5000):
        clock.now += 0.1
        job.advance()
    assert len(job._marks) < 1.2 * JobProgress.WINDOW_S / 0.1


def test_cancel_from_another_thread_stops_at_the_next_report_and_keeps_the_notes():
    job = JobProgress()
    job.stage("predicting", 10)
    job.note("three tiles could not be read")
    asked = threading.Thread(target=job.cancel)
    asked.start()
    asked.join()
    assert job.cancelled
    with pytest.raises(Cancelled, match="during predicting"):
        job.advance()
    assert job.snapshot().done == 1, "the step that was done is counted"
    with pytest.raises(Cancelled, match="during drawing"):
        job.stage("drawing")
    assert job.notes == ["three tiles could not be read"]
    job.note("a note never raises")


def test_many_threads_lose_no_step():
    job, seen, go = JobProgress(), [], threading.Event()
    job.stage("x", 8 * 500)

    def work():
        go.wait()
        for _ in range(500):
            job.advance()

    def look():
        go.wait()
        while len(seen) < 2000:
            seen.append(job.snapshot())

    threads = [*(threading.Thread(target=work) for _ in range(8)), threading.Thread(target=look)]
    for t in threads:
        t.start()
    go.set()
    for t in threads:
        t.join()
    assert job.snapshot().done == 8 * 500
    assert all(a.done <= b.done for a, b in itertools.pairwise(seen))
    assert all(s.rate >= 0 for s in seen)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (150, "2 min 30 s"), (3599.7, "1 h 00 min"),
     (3900, "1 h 05 min"), (3 * 86400, "3 days"), (1e300, "over 100 days"), (float("inf"), "over 100 days"),
     (float("nan"), "over 100 days")],
)  # fmt: skip
def test_times_are_said_as_a_person_says_them(seconds, text):
    assert human_time(seconds) == text


@given(st.floats(0, 1e9))
def test_times_always_have_a_known_form(seconds):
    assert re.fullmatch(
        r"\d{1,2} s|\d{1,2} min \d\d s|\d{1,2} h \d\d min|\d{1,3} days|over 100 days", human_time(seconds)
    )


@pytest.mark.parametrize(
    ("rate", "text"), [(0.034, "0.034/s"), (0.5, "0.5/s"), (3.14159, "3.1/s"), (99.96, "100.0/s"), (1234.5, "1234/s")]
)
def test_slow_and_fast_rates_keep_their_figures(rate, text):
    assert Snapshot("x", 1, 10, rate, None).text == f"x 1/10 · {text}"


def test_a_finished_stage_has_nothing_left():
    assert Snapshot("x", 10, 10, 2.0, 0.0).text == "x 10/10 · 2.0/s"


# -- on standard error -------------------------------------------------------------------------------------------


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=True, highlight=False)


def run_a_night(job, clock, hours):
    job.stage("finding tissue")
    job.stage("predicting", hours * 3600)
    for _ in range(hours * 360):
        clock.now += 10
        job.advance(10)
    job.stage("drawing")


def test_a_log_file_has_few_lines(clock):
    out = console(terminal=False)
    with console_progress("case.svs", out) as job:
        assert not job.live
        run_a_night(job, clock, hours=8)
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "case.svs: predicting 0/28800"
    assert lines[1] == "case.svs: predicting 10/28800 · 1.0/s · 7 h 59 min left"
    assert 10 < len(lines) < 70
    assert "\x1b" not in out.file.getvalue()


def test_what_was_resumed_is_said_once(clock):
    out = console(terminal=False)
    with console_progress("case.svs", out) as job:
        job.stage("predicting", 4800, done=1200)
        clock.now += 11
        job.advance(10)
    assert out.file.getvalue().splitlines() == [
        "case.svs: resumed: 1200 of 4800 were done before",
        "case.svs: predicting 1200/4800",
        "case.svs: predicting 1210/4800 · 0.91/s · 1 h 05 min left",
    ]


def test_warnings_are_said_once_each_and_markup_is_text():
    out = console(terminal=False)
    with console_progress("[red]a[/red].svs", out) as job:
        job.note("it is [bold]grey[/bold]")
        job.stage("drawing")
    assert out.file.getvalue() == "[red]a[/red].svs: warning: it is [bold]grey[/bold]\n"


def test_a_terminal_shows_stage_done_rate_and_time_left_and_is_left_clean(clock):
    out = console(terminal=True)
    with console_progress("case.svs", out) as job:
        assert job.live
        job.stage("predicting", 4800, done=1200)
        clock.now += 10
        job.advance(600)
        job.bars.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.file.getvalue())
    assert "resumed: 1200 of 4800 were done before" in text
    assert "predicting 1800/4800 · 60.0/s · 50 s left" in text
    assert out.file.getvalue().rstrip().endswith("\x1b[2K"), "the bar is wiped, results follow on a clean line"


def test_a_long_file_name_leaves_room_for_the_numbers(clock):
    out = console(terminal=True)
    with console_progress("x" * 300 + ".svs", out) as job:
        job.stage("predicting", 4800)
        clock.now += 10
        job.advance(600)
        job.bars.refresh()
    assert "predicting 600/4800" in out.file.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with console_progress("a", console(terminal=True)) as job:
        assert not job.live


def test_a_pause_holds_the_job_and_neither_rate_nor_time_left_hear_of_it(clock):
    job, done, go = JobProgress(), [], threading.Semaphore(0)

    def work():
        job.stage("predicting", 8)
        for _ in range(8):
            go.acquire()
            clock.now += 1
            job.advance()
            done.append(1)

    def wait(condition):
        while not condition():
            threading.Event().wait(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    go.release(3)
    wait(lambda: len(done) == 3)
    job.pause()
    assert job.paused
    go.release(1)
    wait(lambda: job.snapshot().done == 4)
    threading.Event().wait(0.2)
    assert len(done) == 3, "it waits after the step in work"
    clock.now += 600
    assert (job.snapshot().rate, job.snapshot().eta_s) == (1.0, 4.0)
    job.resume()
    go.release(4)
    thread.join()
    assert len(done) == 8
    assert job.waited_s == 600
    assert job.snapshot().rate == 1.0, "the pause counts as no time"


def test_a_stop_reaches_a_job_that_is_paused():
    job, ended = JobProgress(), []

    def work():
        try:
            job.stage("predicting", 8)
            job.advance()
        except Cancelled as e:
            ended.append(str(e))

    job.pause()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive(), "it waits"
    job.cancel()
    thread.join(5)
    assert ended == ["stopped during predicting"]


def test_reading_and_computing_are_told_apart():
    job = JobProgress()
    job.stage("predicting", 8)
    assert job.snapshot().apart == ""
    job.advance(1, reading_s=0.00123, computing_s=0.11)
    assert job.snapshot().apart == "reading 1.2 ms, computing 110 ms a tile"
