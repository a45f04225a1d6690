"""What the dock *Predict expression* asks of the workflows, beside the window. There is no Qt in here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_peka.core.errors import EncoderUnavailable, MissingResolution
from napari_peka.core.progress import NULL, Progress

if TYPE_CHECKING:
    from napari_peka.config import PredictConfig
    from napari_peka.infer.forward import Forward
    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model
    from napari_peka.trust.slide_qc import SlideCheck
    from napari_peka.workflows.estimate import Estimate
    from napari_peka.workflows.standing import Standing

ASK_MPP = "fill in the µm per pixel (20× is about 0.5, 40× about 0.25)"


@dataclass(frozen=True, eq=False)
class Wish:
    """What a person asks for.

    Parameters
    ----------
    path
        The slide's file.
    slide
        The slide, where it is open and its resolution counts; None: it is opened anew.
    mpp
        µm per pixel that was filled in; None: the file says it.
    model
        As :func:`napari_peka.load_model` takes it; a hub's model must be on this disk.
    region
        shapely geometry in level-0 pixels, x first; None: the whole slide.
    parts
        Tiles that lie side by side where without overlap one would.
    settings
        Further ones of :class:`napari_peka.PredictConfig`.
    output
        Where the result goes, ``SLIDE.peka.zarr``; None: nowhere.
    replace
        Whether a result of something else may be replaced.
    """

    path: Path
    slide: Slide | None
    mpp: float | None
    model: str
    region: Any = None
    parts: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    output: Path | None = None
    replace: bool = False

    @property
    def speed_key(self) -> tuple[str, str, str]:
        """What decides how long a tile takes."""
        return str(self.path), self.model, str(self.settings.get("device"))

    @property
    def check_key(self) -> tuple[object, ...]:
        """What decides what is said of the slide, beside slide and model themselves."""
        region = None if self.region is None else self.region.wkt
        settings = {k: v for k, v in self.settings.items() if k != "device"}
        return str(self.path), self.mpp, self.model, region, self.parts, str(settings)

    def config(self, model: Model) -> PredictConfig:
        """Return the settings for a model."""
        from napari_peka.config import PredictConfig

        stride = max(1, model.tile_spec().stride // self.parts) if self.parts > 1 else None
        return PredictConfig(**self.settings, stride_px=stride)


@dataclass(frozen=True)
class Plan:
    """What pressing *Predict* would mean.

    Parameters
    ----------
    tiles
        Number of tiles.
    tile_um
        Side of the square that a tile's value stands for, in µm.
    stride_um
        Distance of neighbouring tiles in µm.
    passes
        Passes of the encoder a tile.
    whole
        Number of tiles of the whole slide.
    there
        What is there already.
    """

    tiles: int
    tile_um: float
    stride_um: float
    passes: int
    whole: int
    there: Standing


class Memory:
    """What a dock keeps between two wishes: tissue and check of the last slide, and an encoder loaded for timing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tissue: tuple[str, Tissue] | None = None
        self._forward: tuple[tuple[str, str], Forward] | None = None
        self._check: tuple[tuple[Any, ...], SlideCheck] | None = None
        self._after: tuple[tuple[Any, str], SlideCheck] | None = None

    def tissue(self, slide: Slide, config: PredictConfig) -> Tissue | None:
        """Return a slide's tissue, found once; None where it does not count."""
        if not config.find_tissue:
            return None
        from napari_peka.infer.tissue import find_tissue

        key = f"{slide.fingerprint} {slide.resolution}"
        with self._lock:
            if self._tissue is None or self._tissue[0] != key:
                self._tissue = key, find_tissue(slide)
            return self._tissue[1]

    def forward(self, model: Model, config: PredictConfig) -> Forward:
        """Return the encoder of a model, the loaded one where there is one."""
        from napari_peka.workflows.predict import load_forward

        key = (model.seen_digest, config.device)
        with self._lock:
            if self._forward is None or self._forward[0] != key:
                self._forward = key, load_forward(model, config, offline=True)
            return self._forward[1]

    def check(self, wish: Wish, slide: Slide, model: Model, config: PredictConfig) -> SlideCheck:
        """Return what is known of a slide before its prediction, with what :meth:`learn` heard of its map."""
        from napari_peka.workflows.slide_check import check_slide

        key = wish.check_key, slide.fingerprint, str(slide.resolution), model.digest
        tissue = self.tissue(slide, config) if slide.resolution is not None else None
        with self._lock:
            if self._check is None or self._check[0] != key:
                self._check = key, check_slide(slide, model, config=config, region=wish.region, tissue=tissue)
            check = self._check[1]
        known = self._after
        return (
            check if known is None or known[0] != (wish.check_key, model.digest) else check.with_lines(known[1].lines)
        )

    def learn(self, wish: Wish, prediction: Prediction) -> None:
        """Add to the check of a wish what its map says; quick."""
        from napari_peka.trust.slide_qc import SlideCheck, slide_qc_of

        digest = prediction.record["model"]["digest"]
        if not prediction.partial:
            self._after = (wish.check_key, digest), slide_qc_of(prediction, SlideCheck(()))

    def forget_forward(self) -> None:
        """Give the encoder's memory back."""
        with self._lock:
            self._forward = None


@contextmanager
def _opened(wish: Wish) -> Iterator[tuple[Slide, Model, PredictConfig]]:
    from napari_peka.io.slide import open_slide

    model = load_local(wish.model)
    config = wish.config(model)
    if wish.slide is not None:
        yield wish.slide, model, config
        return
    with open_slide(wish.path, mpp=wish.mpp) as slide:
        yield slide, model, config


def load_local(name: str) -> Model:
    """Load a model that is on this disk; docks fetch nothing unasked."""
    from napari_peka.models.zoo import load_model

    return load_model(name, offline=True)


@contextmanager
def _in_words_of_the_dock() -> Iterator[None]:
    try:
        yield
    except EncoderUnavailable as e:
        raise EncoderUnavailable(f"{str(e).partition(' and nothing is fetched')[0]}; see About the model") from e
    except MissingResolution as e:
        raise MissingResolution(f"{str(e).rpartition(';')[0]}; {ASK_MPP}") from e


def plan(wish: Wish, memory: Memory) -> Plan:
    """Lay out the tiles, and look at what is there."""
    from napari_peka.workflows.predict import plan_tiles
    from napari_peka.workflows.standing import standing

    with _opened(wish) as (slide, model, config):
        tissue = memory.tissue(slide, config)
        tiles = plan_tiles(slide, model, config, tissue=tissue, region=wish.region)
        whole = len(tiles if wish.region is None else plan_tiles(slide, model, config, tissue=tissue))
        there = standing(slide, model, tiles, wish.output, config=config)
        spec = tiles.spec
        return Plan(len(tiles), spec.footprint_um, spec.stride * spec.mpp, model.passes, whole, there)


def check(wish: Wish, memory: Memory) -> SlideCheck:
    """Say whether the model can be believed on the slide."""
    with _opened(wish) as (slide, model, config):
        return memory.check(wish, slide, model, config)


def measure(wish: Wish, memory: Memory, progress: Progress = NULL) -> Estimate:
    """Time a few tiles of the wish, as if nothing of it were there."""
    from napari_peka.workflows.estimate import estimate

    progress.stage("loading the model")
    with _in_words_of_the_dock(), _opened(wish) as (slide, model, config):
        return estimate(
            slide, model, config=config, region=wish.region, tissue=memory.tissue(slide, config),
            forward=memory.forward(model, config), progress=progress,
        )  # fmt: skip


def read(wish: Wish, memory: Memory) -> Prediction:
    """Return what is there of the wish; nothing is computed."""
    from napari_peka.workflows.predict import plan_tiles
    from napari_peka.workflows.standing import read_what_is_there

    assert wish.output is not None
    with _opened(wish) as (slide, model, config):
        tiles = plan_tiles(slide, model, config, tissue=memory.tissue(slide, config), region=wish.region)
        return read_what_is_there(slide, model, tiles, wish.output, config=config)


def run(
    wish: Wish,
    memory: Memory,
    progress: Progress,
    *,
    on_open: Callable[[Slide], None],
    on_start: Callable[[Prediction, Any], None],
    on_block: Callable[..., None],
) -> Prediction:
    """Predict; `on_open` hears of a slide that was opened for it and stays open, `on_block` of parts of blocks too."""
    from napari_peka.io.slide import open_slide
    from napari_peka.workflows.predict import predict

    progress.stage("loading the model")
    model = load_local(wish.model)
    config = wish.config(model)
    slide = wish.slide
    if slide is None:
        slide = open_slide(wish.path, mpp=wish.mpp)
        on_open(slide)
    try:
        with _in_words_of_the_dock():
            return predict(
                slide, model, output=wish.output, region=wish.region, config=config, overwrite=wish.replace,
                tissue=memory.tissue(slide, config) if slide.resolution is not None else None,
                forward=memory.forward(model, config), progress=progress, on_start=on_start, on_block=on_block,
                on_part=on_block,
            )  # fmt: skip
    finally:
        memory.forget_forward()
