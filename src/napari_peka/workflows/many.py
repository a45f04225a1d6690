"""Many slides: the encoder is loaded once, and what is wrong with one does not stop the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_peka.config import PredictConfig
from napari_peka.core.errors import SettingError
from napari_peka.core.files import make_folder
from napari_peka.core.progress import NULL, Cancelled, Progress
from napari_peka.workflows.predict import load_forward, predict

if TYPE_CHECKING:
    from napari_peka.infer.forward import Forward
    from napari_peka.models.bundle import Model
    from napari_peka.workflows.crew import CrewForward

RESULT_ENDING = ".peka.zarr"
#: gives each slide what it reports to
ProgressOf = Callable[[int, Path], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Outcome:
    """What became of one slide.

    Parameters
    ----------
    slide
        Its file.
    entry
        What the command line writes of it as JSON; without ``output`` where it failed.
    error
        Why it failed; None: it did not.
    number
        Its place among the slides, from 0.
    """

    slide: Path
    entry: dict[str, Any]
    error: Exception | None = None
    number: int = 0


@dataclass(frozen=True)
class Task:
    """A slide of many, and what is wanted of it.

    Parameters
    ----------
    number
        Its place among the slides, from 0.
    slide, folder
        Its file, and where its result goes.
    genes, roi, mpp, overwrite
        As :func:`predict_many` takes them.
    """

    number: int
    slide: Path
    folder: Path
    genes: tuple[str, ...] = ()
    roi: Path | None = None
    mpp: float | None = None
    overwrite: bool = False

    def outcome(self, entry: dict[str, Any] | None = None, error: Exception | None = None) -> Outcome:
        """Return what became of it."""
        return Outcome(self.slide, {"slide": str(self.slide), **(entry or {})}, error, self.number)


def stem(slide: Path) -> str:
    """Return a slide's file name without its last ending, after which its result is named."""
    return (slide if slide.stem not in ("", "..") else slide.resolve()).stem


def result_of(slide: Path, folder: Path) -> Path:
    """Return where a slide's result goes in a folder."""
    return folder / f"{stem(slide)}{RESULT_ENDING}"


def picture_name(slide: Path, gene: str) -> str:
    """Return the file name of a gene's picture, as it was asked for, so that a script knows it beforehand."""
    from napari_peka.io.exports.base import file_name

    return f"{stem(slide)}.{file_name(gene)}.png"


def check_names(slides: Sequence[Path]) -> None:
    """Refuse slides that would write the same result.

    Raises
    ------
    SettingError
        If two have one name.
    """
    count = Counter(map(stem, slides))
    same = [str(s) for s in slides if count[stem(s)] > 1]
    if same:
        raise SettingError(
            f"these slides would write the same result: {', '.join(same)}; predict them apart, each with its own -o"
        )


def predict_many(
    slides: Sequence[Path | str],
    model: Model,
    output: Path | str | Callable[[Path], Path],
    *,
    genes: Sequence[str] = (),
    roi: Path | None = None,
    mpp: float | Callable[[Path], float | None] | None = None,
    config: PredictConfig | None = None,
    overwrite: bool = False,
    forward: Forward | CrewForward | None = None,
    progress_of: ProgressOf | None = None,
    pile: Progress = NULL,
) -> Iterator[Outcome]:
    """Predict slides, and yield what became of each as it is done: one after another, or many together by a crew.

    Parameters
    ----------
    slides
        Files. Of folders and manifests :func:`list_slides` gives them.
    model
        From :func:`load_model`.
    output
        Folder of the results, each ``SLIDE.peka.zarr``; or what gives it for a slide.
    genes
        Genes to draw beside the results, as PNG.
    roi
        GeoJSON of a region in level-0 pixels, the same for all.
    mpp
        µm per pixel, where the files have none or a wrong one; or what gives it for a slide.
    config, overwrite, forward
        As :func:`predict` takes them.
    progress_of
        Called with number (from 0) and file of each slide; returns a context manager whose progress it reports to. Of a
        slide that a worker predicts by itself it hears warnings alone.
    pile
        Told how many slides a crew has done.

    Raises
    ------
    Cancelled
        From a progress: slides in work keep what is done, and no other is begun.
    """
    from napari_peka.infer.forward import Forward

    config = config or PredictConfig()
    maker = forward or load_forward(model, config)
    tasks = [
        Task(
            i, slide, Path(output(slide) if callable(output) else output), tuple(genes), roi,
            mpp(slide) if callable(mpp) else mpp, overwrite,
        )
        for i, slide in enumerate(map(Path, slides))
    ]  # fmt: skip
    progress_of = progress_of or (lambda *_: nullcontext(NULL))
    if isinstance(maker, Forward):
        yield from (predict_task(task, model, config, maker, progress_of) for task in tasks)
        return
    from napari_peka.workflows.crew_many import predict_by_crew

    yield from predict_by_crew(tasks, model, config, maker, progress_of, pile)


def predict_task(
    task: Task, model: Model, config: PredictConfig, forward: Forward | CrewForward, progress_of: ProgressOf
) -> Outcome:
    """Predict a slide of many; only a stop is raised."""
    try:
        with progress_of(task.number, task.slide) as progress:
            entry = predict_file(task, model, config=config, forward=forward, progress=progress)
    except Cancelled:
        raise
    except Exception as e:  # noqa: BLE001 - a night's other slides must not pay for this one
        return task.outcome(error=e)
    return task.outcome(entry)


def predict_file(
    task: Task, model: Model, *, config: PredictConfig, forward: Forward | CrewForward | None = None,
    progress: Progress = NULL,
) -> dict[str, Any]:  # fmt: skip
    """Predict one slide file into a folder, and return what the command line says of it."""
    from napari_peka.io.figure import write_map
    from napari_peka.io.regions import read_regions
    from napari_peka.io.slide import open_slide
    from napari_peka.trust.slide_qc import slide_qc_of

    said: list[str] = []

    def note_new(warnings: Sequence[str]) -> None:
        for text in warnings:
            if text not in said:
                said.append(text)
                progress.note(text)

    region = read_regions(task.roi) if task.roi else None
    with open_slide(task.slide, mpp=task.mpp) as opened:
        note_new(opened.warnings)
        target = result_of(task.slide, make_folder(task.folder))
        prediction = predict(
            opened, model, output=target, region=region, config=config, overwrite=task.overwrite,
            forward=forward, progress=progress,
        )  # fmt: skip
        note_new(opened.warnings)  # reading may have found damage
        progress.stage("drawing")
        pictures = [
            str(write_map(prediction, opened, g, task.folder / picture_name(task.slide, g))) for g in task.genes
        ]
    done = prediction.record["run"]
    return {
        "output": str(target),
        "tiles": done["tiles"],
        "unreadable_tiles": prediction.n_unreadable,
        "seconds": done["seconds"],
        "tiles_per_second": done["tiles_per_second"],
        "resumed_tiles": done["resumed_tiles"],
        "warnings": list(getattr(progress, "notes", said)),
        "pictures": pictures,
        **slide_qc_of(prediction).as_dict(),
    }
