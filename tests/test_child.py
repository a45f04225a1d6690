"""A job in a process of its own: what it says, how it is stopped, how it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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


def ends_when_asked(progress):
    progress.stage("turning", 10_000)
    n = 0
    while not progress.end_asked.is_set():
        n += 1
        progress.advance()
        time.sleep(0.005)
    return n


def says_nothing(progress):
    progress.event(os.getpid())
    time.sleep(600)


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


def test_a_job_can_be_paused_and_ended_early():
    progress, there = JobProgress(), []

    def hold():
        while progress.snapshot().done < 5:
            time.sleep(0.01)
        there[0].paused.set()
        time.sleep(0.5)
        before = progress.snapshot().done
        time.sleep(0.3)
        there.append(progress.snapshot().done - before)
        there[0].end_asked.set()
        there[0].paused.clear()

    thread = threading.Thread(target=hold)
    thread.start()
    assert run_in_child(ends_when_asked, progress=progress, on_start=there.append) >= 5
    thread.join()
    assert there[1] == 0  # nothing was done in the pause


def test_a_stop_reaches_a_job_that_is_paused():
    progress, there = JobProgress(), []

    def stop(remote):
        remote.paused.set()
        threading.Timer(0.5, progress.cancel).start()
        there.append(remote)

    with pytest.raises(Cancelled):
        run_in_child(waits, progress=progress, on_start=stop)


def test_a_job_that_says_nothing_is_ended_in_time():
    progress, pids = JobProgress(), []

    def heard(pid):
        pids.append(pid)
        progress.cancel()

    began = time.monotonic()
    with pytest.raises(Cancelled):
        run_in_child(says_nothing, progress=progress, on_event=heard, patience_s=0.5)
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_outlives_a_killed_parent(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_child import says_nothing\n"
        "from napari_peka.core.child import run_in_child\n"
        "run_in_child(says_nothing, on_event=lambda pid: print(pid, flush=True))"
    )
    script = tmp_path / "parent.py"
    script.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n")
    parent = subprocess.Popen([sys.executable, script, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not _lives(pid):
            return
        time.sleep(0.1)
    pytest.fail("the job's process is still there")


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    return state != "Z"  # one that nobody waits for is dead all the same


def _count_steps(progress):
    progress.stage("counting", 1000)
    for _ in range(1000):
        time.sleep(0.01)
        progress.advance()


def test_a_pause_of_the_callers_progress_reaches_the_job():
    job, ended = JobProgress(), []

    def run():
        try:
            run_in_child(_count_steps, progress=job)
        except Cancelled as e:
            ended.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    while job.snapshot().done < 3:
        time.sleep(0.01)
    job.pause()
    time.sleep(0.6)  # what was on its way arrives
    held = job.snapshot().done
    time.sleep(0.6)
    assert job.snapshot().done == held
    job.resume()
    while job.snapshot().done <= held:
        time.sleep(0.01)
    job.pause()
    job.cancel()
    thread.join(30)
    assert ended
