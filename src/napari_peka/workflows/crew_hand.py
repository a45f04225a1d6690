"""What makes a dask worker ready to predict. It is imported where dask is installed: here and on workers."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin

from napari_peka.core.errors import CrewError
from napari_peka.workflows import crew_work

if TYPE_CHECKING:
    from napari_peka.models.bundle import Model


class Hand(WorkerPlugin):
    """Gives a worker a model, and lets it do one item at a time, on all of its threads.

    Parameters
    ----------
    model
        The model. It comes to workers that start later too, unlike data that are sent to those that are there.
    release
        Version of this package that a worker must have.
    """

    def __init__(self, model: Model, release: str) -> None:
        self.model, self.release = model, release
        self.name = self.resource = f"napari-peka {model.digest}"

    async def setup(self, worker: Any) -> None:
        """Called by dask on each worker, also on those that come later."""
        import torch

        here = version("napari-peka")
        if here != self.release:
            raise CrewError(f"the worker {worker.address} has napari-peka {here}, not {self.release}; install that one")
        # dask has libraries compute on one thread, since it would run a task on each of its own
        torch.set_num_threads(max(int(worker.state.nthreads), int(os.environ.get("OMP_NUM_THREADS") or 1)))
        crew_work.models[self.model.digest] = self.model
        await worker.set_resources(**{self.resource: 1})
