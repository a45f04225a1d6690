"""What runs a model fastest on this machine: backends and number formats, timed on tissue and held against fp32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import PredictConfig
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.infer.schedule import coarse_to_fine
from napari_peka.io.sample import sample_slide
from napari_peka.io.slide import open_slide
from napari_peka.io.tiles import read_tiles
from napari_peka.workflows.predict import load_forward, plan_tiles

if TYPE_CHECKING:
    import torch

    from napari_peka.infer.forward import Forward
    from napari_peka.models.bundle import Model

#: tiles of a pass
TILES = 32
#: s of computing that are enough; of a model whose first pass takes longer than ten times that it is the only one
ENOUGH_S = 3.0
#: correlation with fp32 below which what is faster is not worth it
LEAST_PCC = 0.999
#: share of the fastest one's speed that is as good: torch needs no package more, and fp32 is exact
NEAR = 0.95
#: share of the machine that others may use before it is said
BUSY = 0.2


@dataclass(frozen=True)
class Speed:
    """How fast one backend is in one number format.

    Parameters
    ----------
    backend, precision
        As the settings call them.
    tiles_per_second
        Of the model as a whole, with its rotations and views, from memory; None where it cannot.
    loading_s
        Seconds until the first tile could be computed; what is compiled is kept, so a second time takes less.
    pcc
        Correlation of the embeddings, less their mean over the tiles, with those of torch in fp32.
    why
        Why it cannot, with what to do; empty where it can.
    """

    backend: str
    precision: str
    tiles_per_second: float | None = None
    loading_s: float | None = None
    pcc: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Speeds:
    """What was measured on a machine for a model.

    Parameters
    ----------
    model, device
        What, and on what.
    runs
        torch in fp32 first.
    auto
        Backend and precision that ``auto`` takes.
    busy
        Share of the machine that other programs used just before.
    """

    model: str
    device: str
    runs: list[Speed]
    auto: tuple[str, str]
    busy: float

    @property
    def choose(self) -> Speed:
        """The first of those that are nearly the fastest and agree with fp32."""
        good = [r for r in self.runs if r.pcc is not None and r.pcc >= LEAST_PCC]
        fastest = max(r.tiles_per_second or 0.0 for r in good)
        return next(r for r in good if (r.tiles_per_second or 0.0) >= NEAR * fastest)

    @property
    def warning(self) -> str:
        """Why the figures may mislead; empty where nothing is known."""
        if self.busy <= BUSY:
            return ""
        return f"other programs used {self.busy:.0%} of this machine just before: ask again when it is quiet"

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as data for JSON."""
        chosen = self.choose
        return asdict(self) | {
            "auto": {"backend": self.auto[0], "precision": self.auto[1]},
            "choose": {"backend": chosen.backend, "precision": chosen.precision},
        }


def speeds(model: Model, *, device: str = "auto", seconds: float = ENOUGH_S, progress: Progress = NULL) -> Speeds:
    """Time a model by each backend in each number format that this machine computes in.

    One after another, so that never more than one encoder is in memory; on tiles of the embedded slide. Takes seconds
    for a small encoder and minutes for a large one.

    Parameters
    ----------
    model
        From :func:`load_model`.
    device
        As :class:`PredictConfig` takes it.
    seconds
        Of computing that are enough for each.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Raises
    ------
    EncoderUnavailable
        If the encoder's weights cannot be had.
    """
    import psutil

    from napari_peka.models.backends import choose_backend
    from napari_peka.models.devices import PRECISIONS, choose_device, choose_precision

    on = choose_device(device)
    auto = choose_precision("auto", on)
    busy = psutil.cpu_percent(0.5) / 100
    tiles = _tiles(model)
    wanted = list(_candidates(on))
    progress.stage("timing", len(wanted))
    runs: list[Speed] = []
    exact: npt.NDArray[np.float16] | None = None
    forward: Forward | None
    for backend, precision in wanted:
        try:
            forward = load_forward(model, PredictConfig(device=device, precision=precision, backend=backend))
            rate, loading, seen = _timed(forward, tiles, seconds, progress)
            embeddings = seen[:, : model.head.embedding_dims]
        except SettingError as e:
            runs.append(Speed(backend, precision, why=str(e)))
        else:
            exact = embeddings if exact is None else exact
            runs.append(Speed(backend, precision, round(rate, 2), round(loading, 2), _pcc(embeddings, exact)))
        forward = None  # one encoder in memory at a time
        progress.advance()
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    return Speeds(model.name, str(on), runs, (choose_backend("auto", on, auto), names[auto]), busy)


def _candidates(device: torch.device) -> Iterator[tuple[str, Any]]:
    """Yield backend and precision, torch in fp32 first."""
    import torch

    from napari_peka.models.backends import ENGINES, TORCH
    from napari_peka.models.devices import PRECISIONS, choose_precision

    at_hand = {torch.float32, choose_precision("auto", device)} | ({torch.float16} if device.type != "cpu" else set())
    for backend in (TORCH, *(ENGINES if device.type == "cpu" else ())):
        formats = ENGINES[backend].formats if backend in ENGINES else at_hand
        yield from ((backend, name) for name, dtype in PRECISIONS.items() if dtype in at_hand and dtype in formats)


def _tiles(model: Model) -> npt.NDArray[np.uint8]:
    """Return tiles from all over the embedded slide, uint8 ``(n, S, S, 3)``."""
    found: list[npt.NDArray[np.uint8]] = []
    with open_slide(sample_slide()) as slide:
        table = plan_tiles(slide, model)
        blocks = table.blocks()
        for i in coarse_to_fine(blocks):
            if sum(map(len, found)) < TILES:
                images, ok = read_tiles(slide, table, blocks[i])
                found.append(images[ok])
    return np.concatenate(found)[:TILES]


def _timed(
    forward: Forward, tiles: npt.NDArray[np.uint8], seconds: float, progress: Progress
) -> tuple[float, float, npt.NDArray[np.float16]]:
    """Return tiles a second, seconds of loading, and the embeddings."""
    began = perf_counter()
    _ = forward.module
    loading = perf_counter() - began
    took: list[float] = []
    with forward.brake.heeding(progress):
        while len(took) < 2 or sum(took[1:]) < seconds:  # the first allocates
            began = perf_counter()
            embeddings = forward(tiles)
            took.append(perf_counter() - began)
            if took[0] > 10 * seconds:
                break
    spent = took[1:] or took
    return len(tiles) * len(spent) / sum(spent), loading, embeddings


def _pcc(a: npt.NDArray[np.float16], b: npt.NDArray[np.float16]) -> float:
    x, y = ((v - v.mean(0)).ravel() for v in (a.astype(np.float64), b.astype(np.float64)))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
