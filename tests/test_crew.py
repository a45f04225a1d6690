"""Prediction by workers: real processes of a local cluster, one of them killed, and jobs of a stand-in scheduler."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("distributed", reason="a cluster needs the extra [cluster]")

import napari_peka as peka
from napari_peka import cli
from napari_peka.core.errors import CrewError, NoResult, SettingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.workflows import crew as crew_module
from napari_peka.workflows import crew_work
from napari_peka.workflows.crew import Crew, open_crew
from napari_peka.workflows.crew_many import whole_slides
from napari_peka.workflows.crew_work import Item, work
from napari_peka.workflows.many import predict_many

CONFIG = peka.PredictConfig(device="cpu", precision="fp32", batch_size=8)
TINY = ["--device", "cpu", "--precision", "fp32", "--batch-size", "8"]


@pytest.fixture(scope="module")
def crew():
    """Two worker processes."""
    with open_crew("local", 2) as made:
        made.client.wait_for_workers(2)
        yield made


@pytest.fixture
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(tissue_tiff, tiny_model, tmp_path_factory):
    """What this process predicts by itself."""
    with peka.open_slide(tissue_tiff) as slide:
        return peka.predict(slide, tiny_model, output=tmp_path_factory.mktemp("alone") / "a.peka.zarr", config=CONFIG)


def same(a, b):
    np.testing.assert_array_equal(a.tiles.centre_yx, b.tiles.centre_yx)
    np.testing.assert_array_equal(a.read_ok, b.read_ok)
    # processes of other numbers of threads may differ in the last digit of float16
    np.testing.assert_allclose(a.embeddings.astype(float), b.embeddings.astype(float), rtol=2e-3, atol=1e-3)


def test_workers_give_what_one_process_gives(crew, alone, slide, tiny_model, tmp_path):
    blocks = []
    job = JobProgress()
    done = peka.predict(
        slide, tiny_model, output=tmp_path / "a.peka.zarr", forward=crew.forward(tiny_model, CONFIG), config=CONFIG,
        on_block=lambda block, *_: blocks.append(block.index), progress=job,
    )  # fmt: skip
    same(done, alone)
    assert sorted(blocks) == [b.index for b in done.tiles.blocks()], "each is told of once"
    assert job.snapshot().done == len(done.tiles)
    assert [p.name for p in tmp_path.iterdir()] == ["a.peka.zarr"]
    # it is the same result: a process by itself finds it finished
    again = peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=CONFIG)
    assert again.record["run"]["resumed_tiles"] == len(again.tiles)


class KillsOne(JobProgress):
    """Kills a worker's process when the first tiles are there."""

    def __init__(self, crew):
        super().__init__()
        self.pids = sorted(crew.client.run(os.getpid).values())
        self.killed = 0

    def advance(self, n=1, **metrics):
        if not self.killed:
            self.killed = self.pids[0]
            os.kill(self.killed, signal.SIGKILL)
        super().advance(n, **metrics)


def test_a_killed_worker_loses_nothing(crew, alone, slide, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "ITEM_BLOCKS", 1)  # many items: some are in the killed one's hands
    crew.client.wait_for_workers(2)
    job = KillsOne(crew)
    done = peka.predict(
        slide, tiny_model, output=tmp_path / "a.peka.zarr", forward=crew.forward(tiny_model, CONFIG), config=CONFIG,
        progress=job,
    )  # fmt: skip
    assert job.killed
    assert any("a worker ended" in text for text in job.notes)
    same(done, alone)
    assert job.snapshot().done == len(done.tiles)
    assert [p.name for p in tmp_path.iterdir()] == ["a.peka.zarr"]


@pytest.fixture
def digest(tiny_model, monkeypatch):
    """Have this process be a worker that was given the tiny model; returns what it is called."""
    monkeypatch.setitem(crew_work.models, tiny_model.digest, tiny_model)
    return tiny_model.digest


def test_what_a_killed_worker_wrote_is_left_alone(slide, tiny_model, digest, tmp_path):
    from napari_peka.io.block_files import BlockFiles

    tiles = peka.plan_tiles(slide, tiny_model, CONFIG)
    blocks = tiles.blocks()[1:3]
    files = BlockFiles(tmp_path, tiny_model.head.embedding_dims)
    item = Item(
        slide.path, slide.fingerprint, tiles.of_blocks(blocks), (1, 2), files, CONFIG, digest, ("float32", "cpu")
    )  # fmt: skip
    first = work(item)
    assert (first.computed, first.tiles) == (2, sum(map(len, blocks)))
    written = [files.path(i).stat().st_mtime_ns for i in (1, 2)]
    again = work(item)
    assert (again.computed, again.tiles) == (0, first.tiles)
    assert [files.path(i).stat().st_mtime_ns for i in (1, 2)] == written
    files.path(2).unlink()
    assert work(item).computed == 1


def test_a_worker_that_sees_or_computes_otherwise_says_so(slide, tiny_model, digest, tmp_path):
    from dataclasses import replace

    from napari_peka.io.block_files import BlockFiles

    tiles = peka.plan_tiles(slide, tiny_model, CONFIG)
    block = tiles.blocks()[0]
    files = BlockFiles(tmp_path, tiny_model.head.embedding_dims)
    item = Item(
        slide.path, slide.fingerprint, tiles.of_blocks([block]), (0,), files, CONFIG, digest, ("float32", "cpu")
    )
    with pytest.raises(CrewError, match=r"a worker does not see .*gone\.tif; slides and results must lie where all"):
        work(replace(item, slide=tmp_path / "gone.tif"))
    with pytest.raises(CrewError, match=r"a worker does not see .*elsewhere"):
        work(replace(item, files=BlockFiles(tmp_path / "elsewhere", files.n_dims)))
    with pytest.raises(CrewError, match="another file on a worker"):
        work(replace(item, fingerprint="0" * 64))
    with pytest.raises(CrewError, match="computes in float32 on cpu, others in bfloat16 on cuda"):
        work(replace(item, maker=("bfloat16", "cuda")))


def test_a_stop_keeps_what_is_done(crew, alone, slide, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "ITEM_BLOCKS", 1)

    class Stops(JobProgress):
        def advance(self, n=1, **metrics):
            self.cancel()
            super().advance(n, **metrics)

    out, forward = tmp_path / "a.peka.zarr", crew.forward(tiny_model, CONFIG)
    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=out, forward=forward, config=CONFIG, progress=Stops())
    with pytest.raises(NoResult, match="not finished"):
        peka.read_prediction(out)
    done = peka.predict(slide, tiny_model, output=out, config=CONFIG)  # by itself, from there
    assert 0 < done.record["run"]["resumed_tiles"] < len(done.tiles)
    same(done, alone)


def test_slides_that_fail_do_not_stop_the_others(crew, alone, tissue_tiff, tiny_model, tmp_path):
    slides = [tmp_path / f"{i}.tif" for i in range(3)]
    shutil.copy(tissue_tiff, slides[0])
    slides[1].write_bytes(b"no slide")
    shutil.copy(tissue_tiff, slides[2])
    done = list(
        predict_many(slides, tiny_model, tmp_path / "out", config=CONFIG, forward=crew.forward(tiny_model, CONFIG))
    )
    assert sorted(o.number for o in done) == [0, 1, 2]
    by_number = {o.number: o for o in done}
    assert "no slide or image" in str(by_number[1].error)
    for i in (0, 2):
        assert by_number[i].error is None
        same(peka.read_prediction(by_number[i].entry["output"]), alone)


def test_of_many_slides_workers_do_whole_ones_and_share_the_last(crew, alone, tissue_tiff, tiny_model, tmp_path):
    slides = [tmp_path / f"{i}.tif" for i in range(5)]
    for slide in slides:
        shutil.copy(tissue_tiff, slide)
    slides[1].write_bytes(b"no slide")
    watched, pile = [], JobProgress()

    @contextmanager
    def progress_of(i, slide):
        watched.append(i)
        yield JobProgress()

    done = {
        o.number: o
        for o in predict_many(
            slides, tiny_model, str(tmp_path / "out"), genes=["ERBB2"], config=CONFIG, pile=pile,
            progress_of=progress_of, forward=crew.forward(tiny_model, CONFIG),
        )
    }  # fmt: skip
    assert sorted(done) == sorted(watched) == [0, 1, 2, 3, 4]
    assert (whole_slides(5, 2), whole_slides(2, 2), pile.snapshot().done) == (3, 0, 5)
    assert "no slide or image" in str(done[1].error)
    for i in (0, 2, 3, 4):
        assert done[i].error is None
        assert done[i].entry["pictures"] == [str(tmp_path / "out" / f"{i}.ERBB2.png")]
        assert (tmp_path / "out" / f"{i}.ERBB2.png").exists()
        same(peka.read_prediction(done[i].entry["output"]), alone)
    again = list(
        predict_many(slides[2:], tiny_model, tmp_path / "out", config=CONFIG, forward=crew.forward(tiny_model, CONFIG))
    )
    assert all(o.entry["resumed_tiles"] == o.entry["tiles"] for o in again), "finished ones are not done again"


def test_workers_that_end_again_and_again_are_told_in_a_sentence(crew):
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        open_crew("local", 1) as other,
        pytest.raises(CrewError, match="more memory"),
        crew_module._as_crew_errors(),
    ):
        other.client.submit(os._exit, 1, pure=False).result()


def test_workers_of_another_version_are_refused(crew, tiny_model, monkeypatch):
    monkeypatch.setattr(crew_module, "version", lambda _: "9.9")
    with pytest.raises(CrewError, match=r"has napari-peka .*, not 9\.9"):
        crew.forward(tiny_model, CONFIG)


def test_what_is_no_cluster_is_one_sentence(capsys, tmp_path, monkeypatch):
    slide = tmp_path / "a.tif"
    base = ["predict", str(slide), "--model", "demo", "-o", str(tmp_path / "out")]
    scheduler_file = tmp_path / "other.json"
    scheduler_file.write_text("{}")
    monkeypatch.setenv("PATH", str(tmp_path))
    for more, said in (
        (["--cluster", "tcp://127.0.0.1:9"], "no cluster answers at tcp://127.0.0.1:9; give local, slurm"),
        (["--cluster", "nonsense://x"], "no cluster answers at nonsense://x"),
        (["--cluster", str(scheduler_file)], "or its scheduler file"),
        (["--cluster", "slurm"], "sbatch is not here"),
        (["--cluster", "tcp://127.0.0.1:9", "--workers", "2"], "has its own workers"),
        (["--workers", "2"], "give --cluster"),
        (["--cluster", "local", "--dry-run"], "leave --cluster away"),
        (["--cluster", "local", "--workers", "0"], "at least one worker"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*base, *more])
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1], err
        assert ended.value.code in (1, 2)
        assert "Traceback" not in err


SBATCH = """#!{python}
import os, subprocess, sys
log = open(os.environ["JOBS"] + "/log", "a")
job = subprocess.Popen(["bash", sys.argv[-1]], start_new_session=True, stdout=log, stderr=log)
open(os.environ["JOBS"] + f"/{{job.pid}}", "w").write(open(sys.argv[-1]).read())
print(f"Submitted batch job {{job.pid}}")
"""
SCANCEL = """#!{python}
import os, signal, sys
try:
    os.killpg(int(sys.argv[-1]), signal.SIGTERM)
except ProcessLookupError:
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="batch schedulers run on Linux")
def test_jobs_of_slurm_predict(alone, tissue_tiff, bundle_folder, tmp_path):
    programs, jobs, config = (tmp_path / name for name in ("bin", "jobs", "dask"))
    for folder in (programs, jobs, config):
        folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(stat.S_IRWXU)
    (config / "jobqueue.yaml").write_text(
        "jobqueue:\n  slurm:\n    cores: 1\n    memory: 2GB\n    walltime: '00:10:00'\n    interface: lo\n"
        f"    python: {sys.executable}\n    log-directory: null\n    job-extra-directives: ['--gres=gpu:1']\n"
    )
    env = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "JOBS": str(jobs), "DASK_CONFIG": str(config),
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "napari_peka", "predict", str(tissue_tiff), "--model", str(bundle_folder)]
    command += ["-o", str(tmp_path / "out"), "--cluster", "slurm", "--workers", "2", *TINY, "--json"]
    ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr + (jobs / "log").read_text()
    (entry,) = json.loads(ran.stdout)
    same(peka.read_prediction(entry["output"]), alone)
    asked = [p.read_text() for p in jobs.iterdir() if p.name != "log"]
    assert len(asked) == 2
    assert all("#SBATCH --gres=gpu:1" in text for text in asked)


def test_a_scheduler_without_configuration_is_told_in_a_sentence(tmp_path, monkeypatch):
    import dask

    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        dask.config.set({"jobqueue.slurm.cores": None}),
        pytest.raises(SettingError, match=r"jobqueue\.yaml what a job"),
        open_crew("slurm"),
    ):
        pass


def test_a_crew_is_of_workers_that_compute_alike(crew, tiny_model):
    forward = crew.forward(tiny_model, CONFIG)
    assert (forward.precision, forward.device.type) == ("float32", "cpu")
    assert forward.digest == tiny_model.embedding_digest
    assert isinstance(crew, Crew)
    assert crew.n_workers == 2
