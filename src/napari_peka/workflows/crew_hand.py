"""What makes a dask worker ready to predict. It is imported where dask is installed: here and on workers."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from distributed import WorkerPlugin

from napari_peka.core.errors import CrewError


class Hand(WorkerPlugin):  # type: ignore[misc]
    """Lets a worker do one item at a time, on all of its threads.

    Parameters
    ----------
    resource
        Of which a worker has one, and an item needs one.
    release
        Version of this package that a worker must have.
    """

    name = "napari-peka"

    def __init__(self, resource: str, release: str) -> None:
        self.resource, self.release = resource, release

    async def setup(self, worker: Any) -> None:
        """Called by dask on each worker, also on those that come later."""
        import torch

        here = version("napari-peka")
        if here != self.release:
            raise CrewError(f"the worker {worker.address} has napari-peka {here}, not {self.release}; install that one")
        # dask has libraries compute on one thread, since it would run a task on each of its own
        torch.set_num_threads(max(int(worker.state.nthreads), int(os.environ.get("OMP_NUM_THREADS") or 1)))
        await worker.set_resources(**{self.resource: 1})
