"""Prediction by many workers: processes on this machine, a dask cluster at an address, or jobs of a batch scheduler.

Workers read slides and write finished blocks on disks that all machines see. A block's file is whole or not there, so
a worker may end at any moment: dask gives what it had in hand to another one, which leaves alone what is there. The
result is put together here, as if all had been computed in this process.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_peka.config import PredictConfig
from napari_peka.core.errors import CrewError, PekaError, SettingError, near_names
from napari_peka.core.files import make_folder
from napari_peka.core.geometry import Block
from napari_peka.core.progress import NULL, Cancelled, Progress, is_cancelled
from napari_peka.infer.schedule import Schedule
from napari_peka.workflows.crew_work import Done, Item, describe, find_tissue_of, work, work_on_slide
from napari_peka.workflows.growing import Growing

if TYPE_CHECKING:
    import torch

    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model
    from napari_peka.workflows.many import Task

LOCAL = "local"
LOOPBACK, ANY_PORT = "127.0.0.1", "127.0.0.1:0"
#: batch schedulers, as ``--cluster`` has them, and the classes of dask-jobqueue that ask them for jobs
SCHEDULERS = {
    "slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster", "oar": "OARCluster",
    "moab": "MoabCluster", "htcondor": "HTCondorCluster",
}  # fmt: skip
#: seconds that an item should take: many times what sending it costs, and soon done again when its worker ends
ITEM_S = 5.0
#: blocks of an item at most
ITEM_BLOCKS = 64
#: items a worker under way, so that none waits for its next one
UNDER_WAY = 2
#: seconds between two looks at what is done, and at whether somebody wants a stop
LOOK_S = 0.2
#: seconds after which it is said that workers are waited for
LONG_S = 10.0
#: seconds that a network disk may take to show here what a worker wrote
SEEN_S = 60.0
_number = count()


@contextmanager
def open_crew(cluster: str = LOCAL, workers: int | None = None, *, progress: Progress = NULL) -> Iterator[Crew]:
    """Have workers that predict, as long as the ``with`` block lasts.

    Parameters
    ----------
    cluster
        ``"local"``: processes on this machine, one a GPU, or one on all cores where there is none. ``"slurm"``,
        ``"pbs"``, ``"lsf"``, ``"sge"``, ``"oar"``, ``"moab"`` or ``"htcondor"``: jobs of that scheduler, as
        dask-jobqueue is configured. Else the address of a dask scheduler that is there, or its scheduler file.
    workers
        Processes, or jobs; None: as many as there are GPUs, or one. A cluster at an address has its own.
    progress
        Told while workers are waited for; raises :class:`Cancelled` to stop.

    Raises
    ------
    SettingError
        If a package is missing, or the scheduler's jobs are not configured.
    CrewError
        If the cluster cannot be reached, or its workers have another version of this package.
    """
    if workers is not None and workers < 1:
        raise SettingError(f"at least one worker is needed, got {workers}")
    _need("distributed")
    progress.stage("waiting for workers")
    with ExitStack() as open_:
        client = open_.enter_context(_client(cluster, workers, open_))
        began = time.monotonic()
        while not client.nthreads():
            progress.advance(0)
            time.sleep(LOOK_S)
            if time.monotonic() - began > LONG_S:
                progress.note(f"no worker of {cluster} is there yet; waiting for the first")
        yield Crew(client, workers or 1)


class Crew:
    """Workers that predict; from :func:`open_crew`.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    wanted
        Number of workers that were asked for: jobs may come late.
    """

    def __init__(self, client: Any, wanted: int = 1) -> None:
        self.client, self.wanted = client, wanted

    @property
    def n_workers(self) -> int:
        """Number of workers that are there now."""
        return len(self.client.nthreads())

    def forward(self, model: Model, config: PredictConfig | None = None) -> CrewForward:
        """Return what :func:`predict` and :func:`predict_many` take as ``forward`` for the workers to compute.

        Raises
        ------
        CrewError
            If workers compute in different formats or on different kinds of devices: their numbers must not be mixed.
        """
        from napari_peka.workflows.crew_hand import Hand

        config, release = config or PredictConfig(), version("napari-peka")
        hand = Hand(model, release)
        try:
            self.client.register_plugin(hand)
        except PekaError:
            raise
        except Exception as e:
            raise CrewError(
                f"the workers cannot be made ready ({e or type(e).__name__}); they need napari-peka {release}, as here"
            ) from e
        with _as_crew_errors():
            asked = [
                self.client.submit(describe, model.digest, config, workers=[w], pure=False)
                for w in self.client.nthreads()
            ]
            said = self.client.gather(asked)
        if len(kinds := sorted({" on ".join(s) for s in said})) > 1:
            raise CrewError(
                f"the workers compute differently ({'; '.join(kinds)}): choose a device, a precision and a backend "
                "that all of them have"
            )
        return CrewForward(self, model, hand.resource, config, said[0])


class CrewForward:
    """A model's encoder as workers have it; from :meth:`Crew.forward`.

    Attributes
    ----------
    digest
        What it computes, in the words of :attr:`Model.seen_digest`.
    precision
        Number format, and who computes in it where that is not PyTorch.
    """

    def __init__(self, crew: Crew, model: Model, resource: str, config: PredictConfig, maker: tuple[str, str]) -> None:
        self.digest, self.precision = model.seen_digest, maker[0]
        self._crew, self._resource, self._config, self._maker = crew, resource, config, maker
        self._model = model.digest

    @property
    def n_workers(self) -> int:
        """Number of workers that are there, or were asked for."""
        return max(self._crew.n_workers, self._crew.wanted)

    @property
    def device(self) -> torch.device:
        """Kind of device on which the workers compute."""
        import torch

        return torch.device(self._maker[1])

    def find_tissue(self, slide: Slide) -> Tissue:
        """Have a worker find a slide's tissue: with many of them this process would be what they wait for."""
        with _as_crew_errors():
            wish = find_tissue_of, slide.path.resolve(), slide.mpp, self._config.tissue_threshold
            # before the tiles of other slides: nothing of this one can be computed yet
            found: Tissue = self._crew.client.submit(*wish, pure=False, priority=1).result()
        return found

    def embed(self, growing: Growing, progress: Progress) -> None:
        """Have the workers compute what is left of a map, and put it in.

        Raises
        ------
        CrewError
            If the cluster is lost, or workers end again and again on the same tiles.
        Cancelled
            From `progress`; blocks that are done are kept.
        """
        client, schedule, n = self._crew.client, growing.schedule, len(growing.tiles)
        progress.stage("predicting", n, done=n - schedule.tiles_left)
        pace, sent, under_way = _Pace(), list[Block](), set[Any]()
        seen: set[str] = set()
        try:
            while under_way or len(schedule):
                there = set(client.nthreads())
                workers = max(1, len(there))
                if seen - there:
                    progress.note("a worker ended; what it had in hand is done by another one")
                seen = there
                while len(schedule) and len(under_way) < UNDER_WAY * workers:
                    blocks = pace.take(schedule, UNDER_WAY * workers)
                    sent += blocks
                    under_way.add(self._send(growing, blocks))
                with _as_crew_errors():
                    finished = {future: future.result() for future in _finished(under_way)}
                under_way -= finished.keys()
                for done in finished.values():
                    pace.add(done)
                    progress.advance(done.tiles, **done.costs)
                if is_cancelled(progress):
                    raise Cancelled("stopped while workers were computing")
        finally:
            client.cancel(list(under_way), force=True)
        for block in sent:
            growing.show(block, *_read_back(growing, block))

    def predict_whole(
        self, tasks: Sequence[Task], stop: threading.Event
    ) -> Iterator[tuple[Task, dict[str, Any], Exception | None]]:
        """Have workers predict whole slides; yield each with what the command line says of it, or why it failed.

        Parameters
        ----------
        tasks
            The slides.
        stop
            Set by who wants no more; what workers have in hand they may finish.
        """
        client, left = self._crew.client, deque(tasks)
        under_way: dict[Any, Task] = {}
        try:
            while (under_way or left) and not stop.is_set():
                while left and len(under_way) < UNDER_WAY * max(1, self._crew.n_workers):
                    task = left.popleft()
                    make_folder(task.folder)
                    seen = dataclasses.replace(task, slide=task.slide.resolve(), folder=task.folder.resolve())
                    # before blocks of slides that are shared: these fill the time until the last of those is done
                    future = client.submit(
                        work_on_slide, seen, self._model, self._config, self._maker, key=self._key(task.slide.name),
                        pure=False, priority=1, resources={self._resource: 1},
                    )  # fmt: skip
                    under_way[future] = task
                for future in _finished(set(under_way)):
                    task = under_way.pop(future)
                    try:
                        with _as_crew_errors():
                            entry: dict[str, Any] = future.result()
                        # workers have whole paths; a person reads theirs
                        entry |= {
                            "output": str(task.folder / Path(entry["output"]).name),
                            "pictures": [str(task.folder / Path(p).name) for p in entry["pictures"]],
                        }
                        yield task, entry, None
                    except Exception as e:  # noqa: BLE001 - other slides must not pay for this one
                        yield task, {}, e
        finally:
            client.cancel(list(under_way), force=True)

    @staticmethod
    def _key(name: str) -> str:
        return f"{name}-{os.getpid()}-{next(_number)}"

    def _send(self, growing: Growing, blocks: list[Block]) -> Any:
        blocks = sorted(blocks, key=lambda b: b.start)
        files = growing.store.blocks
        item = Item(
            growing.slide.path.resolve(), growing.slide.fingerprint, growing.tiles.of_blocks(blocks),
            tuple(b.index for b in blocks), dataclasses.replace(files, folder=files.folder.resolve()), self._config,
            self._model, self._maker, growing.stain,
        )  # fmt: skip
        key = self._key(growing.slide.name)
        return self._crew.client.submit(work, item, key=key, pure=False, retries=1, resources={self._resource: 1})


class _Pace:
    """How many blocks make an item."""

    def __init__(self) -> None:
        self._block_s = ITEM_S  # before anything is known an item is one block

    def take(self, schedule: Schedule, shares: int) -> list[Block]:
        """Take the blocks of an item; the last of a slide are shared among all."""
        n = min(round(ITEM_S / self._block_s), ITEM_BLOCKS, -(-len(schedule) // shares))
        taken = (schedule.take() for _ in range(max(1, n)))
        return [b for b in taken if b is not None]

    def add(self, done: Done) -> None:
        """Learn what a block takes."""
        if done.computed:
            self._block_s = max(done.seconds / done.computed, 1e-3)


def _finished(under_way: set[Any]) -> set[Any]:
    """Return what is finished, after a moment at most."""
    from distributed import wait

    try:
        return set(wait(under_way, timeout=LOOK_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return set()


def _read_back(growing: Growing, block: Block) -> tuple[Any, Any]:
    """Read a block that a worker wrote; a network disk may show it late."""
    until = time.monotonic() + SEEN_S
    while (data := growing.store.read_block(block)) is None:
        if time.monotonic() > until:
            raise CrewError(
                f"{growing.store.blocks.path(block.index)} was written by a worker and is not seen here: results must "
                "lie where all machines see them"
            )
        time.sleep(LOOK_S)
        list(growing.store.blocks.folder.iterdir())  # asks the disk anew
    return data


@contextmanager
def _as_crew_errors() -> Iterator[None]:
    """Say in a sentence what became of workers."""
    from distributed import KilledWorker
    from distributed.client import CancelledError, FuturesCancelledError
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as e:
        raise CrewError(
            "workers ended again and again on the same tiles, for want of memory or by their scheduler's order: give "
            "them more memory or time, or choose a smaller batch size; the same command goes on from here"
        ) from e
    except (CommClosedError, CancelledError, FuturesCancelledError, TimeoutError) as e:
        raise CrewError("the cluster is lost; the same command goes on from here when it is back") from e


# -- clusters --------------------------------------------------------------------------------------------------------


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise SettingError(f"a cluster needs the package {package}: pip install 'napari-peka[cluster]'")


def _client(cluster: str, workers: int | None, open_: ExitStack) -> Any:
    """Return a client of the cluster; what is started for it ends with `open_`."""
    from distributed import Client

    if cluster == LOCAL:
        return Client(open_.enter_context(_local(workers)))
    if cluster in SCHEDULERS:
        jobs = open_.enter_context(_jobs(cluster))
        jobs.scale(jobs=workers or 1)
        return Client(jobs)
    if workers is not None:
        raise SettingError(f"the cluster at {cluster} has its own workers; leave the number of workers away")
    file = Path(cluster)
    where = {"scheduler_file": cluster} if file.is_file() else {"address": cluster}
    try:
        return Client(**where, timeout=10)
    except Exception as e:  # of dask, of the network, or of a file that is none of a scheduler
        known = ", ".join((LOCAL, *SCHEDULERS))
        raise CrewError(
            f"no cluster answers at {cluster}; give {known}, a scheduler's address such as tcp://10.0.0.1:8786, or its "
            f"scheduler file{near_names(cluster, (LOCAL, *SCHEDULERS))}"
        ) from e


def _local(workers: int | None) -> Any:
    """Return a cluster of processes on this machine, each with its own GPU or share of the cores."""
    import dask
    import torch
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    gpus = gpus if torch.cuda.is_available() else []
    n = workers or max(1, len(gpus))
    env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // n))}
    specs = {
        i: {
            "cls": Nanny,
            "options": {
                "nthreads": 1, "memory_limit": 0, "host": LOOPBACK, "dashboard": False,
                "dashboard_address": ANY_PORT,
                "env": env | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}),
            },
        }
        for i in range(n)
    }  # fmt: skip
    options = {"host": LOOPBACK, "dashboard": False, "dashboard_address": ANY_PORT}
    # what workers log of their coming and going is no news to whoever waits for a map, and errors are told here
    quiet = {"distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical"}
    with dask.config.set(quiet):
        return SpecCluster(workers=specs, scheduler={"cls": Scheduler, "options": options}, silence_logs=logging.ERROR)


def _jobs(name: str) -> Any:
    """Return a cluster of a batch scheduler's jobs, none asked for yet."""
    _need("dask_jobqueue")
    import dask
    import dask_jobqueue

    kind: Callable[[], Any] = getattr(dask_jobqueue, SCHEDULERS[name])
    command = str(kind.job_cls.submit_command).split()[0]  # type: ignore[attr-defined]
    if shutil.which(command) is None:
        raise SettingError(f"{command} is not here: the cluster {name} asks it for jobs; run this on a login node")
    if unsaid := [k for k in ("cores", "memory") if dask.config.get(f"jobqueue.{name}.{k}", None) is None]:
        raise SettingError(
            f"say in ~/.config/dask/jobqueue.yaml what a job of {name} has ({' and '.join(unsaid)} are missing); the "
            "documentation has an example (Many slides, many machines)"
        )
    return kind()
