"""Many slides by many workers: whole slides as long as there are more than workers, then the last ones by blocks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from napari_peka.config import PredictConfig
from napari_peka.core.progress import Progress
from napari_peka.workflows.crew import LOOK_S
from napari_peka.workflows.many import Outcome, ProgressOf, Task, predict_task

if TYPE_CHECKING:
    from napari_peka.models.bundle import Model
    from napari_peka.workflows.crew import CrewForward

#: slides that are done by blocks together: while one is being written another one keeps the workers busy
TOGETHER = 4
#: slides at most of which workers share the blocks, where there are more slides than workers: each costs this process
#: half a second, so that more than these would keep a thousand workers waiting (docs/scaling.md)
SHARED = 32


def predict_by_crew(
    tasks: Sequence[Task], model: Model, config: PredictConfig, forward: CrewForward, progress_of: ProgressOf,
    pile: Progress,
) -> Iterator[Outcome]:  # fmt: skip
    """Yield what becomes of each slide, as it is done; see :func:`predict_many`."""
    whole = whole_slides(len(tasks), forward.n_workers)
    news: queue.Queue[Outcome | BaseException] = queue.Queue()
    stop = threading.Event()

    def apart() -> None:
        try:
            for task, entry, error in forward.predict_whole(tasks[:whole], stop):
                with progress_of(task.number, task.slide) as progress:
                    for text in entry.get("warnings", ()):
                        progress.note(text)
                news.put(task.outcome(entry, error))
        except BaseException as e:  # noqa: BLE001 - raised again in the caller's thread
            news.put(e)

    def by_blocks(task: Task) -> None:
        if stop.is_set():
            return
        try:
            news.put(predict_task(task, model, config, forward, watched))
        except BaseException as e:  # noqa: BLE001 - as above
            news.put(e)

    running: list[Progress] = []

    @contextmanager
    def watched(number: int, slide: Path) -> Iterator[Progress]:
        with progress_of(number, slide) as progress:
            running.append(progress)
            yield progress

    pile.stage("slides", len(tasks))
    with ThreadPoolExecutor(1 + TOGETHER, "peka-slide") as pool:
        pool.submit(apart)
        for task in tasks[whole:]:
            pool.submit(by_blocks, task)
        try:
            for _ in tasks:
                while (one := _next(news)) is None:
                    pile.advance(0)
                if isinstance(one, BaseException):
                    raise one
                pile.advance()
                yield one
        except BaseException:  # somebody stops: what is under way keeps what is done
            stop.set()
            for progress in running:
                getattr(progress, "cancel", lambda: None)()
            raise


def _next(news: queue.Queue[Outcome | BaseException]) -> Outcome | BaseException | None:
    try:
        return news.get(timeout=LOOK_S)
    except queue.Empty:
        return None


def whole_slides(slides: int, workers: int) -> int:
    """Return how many slides workers do by themselves; the last ones are shared, or one worker would be waited for."""
    return slides - min(workers, SHARED) if slides > workers else 0
