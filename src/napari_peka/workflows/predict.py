"""The walks, each readable on a page. Command line, docks and Python call these same functions."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_peka.config import PredictConfig
from napari_peka.core.errors import NoTissue, OutputMismatch, SettingError, StoreError
from napari_peka.core.geometry import TileTable
from napari_peka.core.progress import NULL, Progress
from napari_peka.infer.schedule import Schedule
from napari_peka.infer.tissue import Tissue, find_tissue
from napari_peka.io.cache import COMPILED, kept_in
from napari_peka.io.kept_tiles import KeptTiles
from napari_peka.io.prediction import FORMAT, RESEARCH_USE, Prediction, doubt_record, read_prediction
from napari_peka.io.regions import check_region
from napari_peka.io.store import RunStore, amend_record, identity_of_result, result_path
from napari_peka.trust.slide_qc import ENLARGED, SLIDE_CHECK, slide_qc_of
from napari_peka.trust.stain import stain_identity, target_of
from napari_peka.workflows.growing import Growing, OnBlock, OnPart, OnStart, empty_prediction
from napari_peka.workflows.sampling import Sampler

if TYPE_CHECKING:
    import torch

    from napari_peka.infer.forward import Forward
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model
    from napari_peka.models.student import Student
    from napari_peka.workflows.crew import CrewForward

#: what a result's record says of each section that its model was trained on
_TRAINED_ON = ("name", "patient", "patient_named", "fingerprint", "slide", "part")


class Maker(Protocol):
    """What makes embeddings: an encoder in this process, or workers elsewhere."""

    @property
    def digest(self) -> str:
        """What it computes, in the words of :attr:`Model.seen_digest`."""

    @property
    def precision(self) -> str:
        """Number format, and who computes in it where that is not PyTorch."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""


def plan_tiles(
    slide: Slide,
    model: Model,
    config: PredictConfig | None = None,
    *,
    tissue: Tissue | None = None,
    region: Any = None,
) -> TileTable:
    """Lay out the tiles that :func:`predict` would compute: cheap, and enough to say how many there are.

    Parameters
    ----------
    slide, model
        What to predict with what.
    config
        Settings.
    tissue
        A tissue mask; when None it is found, unless ``config.find_tissue`` says that every tile counts.
    region
        A shapely polygon in level-0 pixels, x first; None for the whole slide.

    Raises
    ------
    MissingResolution
        If the slide's µm per pixel are unknown.
    NoTissue
        If no tile has enough tissue.
    RegionError
        If the region lies outside the slide.
    """
    config = config or PredictConfig()
    _check_kinds(slide, model)
    mpp = slide.mpp
    if region is not None:
        region = check_region(region, slide.shape)
    if tissue is None and config.find_tissue:
        tissue = find_tissue(slide, threshold=config.tissue_threshold)
    tiles = TileTable.grid(
        slide.shape,
        mpp,
        model.tile_spec(config.stride_px),
        tissue=tissue.mask if tissue else None,
        min_tissue=config.min_tissue,
        region=region,
        min_region=config.min_region,
    )
    if not len(tiles):
        where = f"{slide.path.name}" if region is None else f"the region of {slide.path.name}"
        raise NoTissue(
            f"no tissue found in {where}: no tile of {tiles.spec.footprint_um:.0f} µm has {config.min_tissue:.0%} of "
            "tissue; lower min_tissue, or check that this is an H&E slide"
        )
    return tiles


def predict(
    slide: Slide,
    model: Model,
    *,
    output: Path | str | None = None,
    region: Any = None,
    tissue: Tissue | None = None,
    config: PredictConfig | None = None,
    overwrite: bool = False,
    forward: Forward | CrewForward | None = None,
    on_start: OnStart | None = None,
    on_block: OnBlock | None = None,
    on_part: OnPart | None = None,
    progress: Progress = NULL,
) -> Prediction:
    """Predict the expression map of a slide.

    Interrupted in any way, the same call goes on from the finished blocks and ends with the same numbers. What the same
    encoder and adapter have seen of the slide before is taken from the cache, so that another gene head or region takes
    a moment; a tile's last digits may be those of the batch in which it was seen.

    Parameters
    ----------
    slide
        From :func:`open_slide`.
    model
        From :func:`load_model`.
    output
        Path of the result, ending in ``.zarr``. None: the result lives in memory only.
    region
        A shapely polygon in level-0 pixels, x first.
    tissue
        A tissue mask in place of the one that is found.
    config
        Settings; see :class:`PredictConfig`.
    overwrite
        Replace a result of something else at `output`. Where that differs by its gene head alone, as after
        :func:`refit`, its embeddings are taken over and nothing is computed.
    forward
        From :func:`load_forward`, to load the encoder once for many slides, or from a :class:`Crew`, whose workers
        then compute; its device and number format count.
    on_start
        Called once with the growing prediction (NaN rows until done) and the schedule, whose
        ``prefer(rect)`` may be called from any thread at any time.
    on_block
        Called after each block with ``(block, embeddings, read_ok)``, in this thread; blocks that a former run
        finished come first.
    on_part
        Called within a block, after each pass but the last, with ``(block, embeddings)``; NaN where tiles are missing.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Returns
    -------
    Prediction
        ``record["run"]`` tells tiles, seconds and how many tiles were resumed. The growing one has
        ``record["partial"]`` in its place, and keeps it when the job is stopped.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="napari-peka-") as scratch:
            done = predict(
                slide, model, output=Path(scratch) / "map.zarr", region=region, tissue=tissue, config=config,
                forward=forward, on_start=on_start, on_block=on_block, on_part=on_part, progress=progress,
            )  # fmt: skip
            done.path = None
            return done
    from napari_peka.workflows.slide_check import check_tiles, stain_map

    path = result_path(output)
    config = config or PredictConfig()
    _check_kinds(slide, model)
    forward = forward or load_forward(model, config)
    if forward.digest != model.seen_digest:
        raise SettingError(f"the encoder that was given to predict is not that of the model {model.name}")
    began = perf_counter()
    if max(slide.mpp) > ENLARGED * model.tile_spec().mpp:
        progress.note(
            f"{slide.path.name} has {max(slide.mpp):.2f} µm/px, the model reads {model.tile_spec().mpp}: it sees "
            f"an enlarged, blurred picture, and its values mean little"
        )
    progress.stage("finding tissue")
    if tissue is None and config.find_tissue:
        tissue = _tissue_of(slide, config, forward)
    tiles = plan_tiles(slide, model, config, tissue=tissue, region=region)
    record = record_of(slide, model, tiles, config, forward)
    known = known_embeddings(path, record)
    if known is not None and not overwrite:
        raise OutputMismatch(
            f"{path} was read by another gene head ({known.record['model']['name']}) of the same encoder: overwrite it "
            "(--overwrite), which takes a moment, or choose another output"
        )
    with RunStore(path, tiles, model.head, record, seen_dims=model.seen_dims, overwrite=overwrite) as store:
        if store.finished():
            ready = read_prediction(path)
            ready.record["run"] = _run(len(tiles), len(tiles), perf_counter() - began)
            _say_organ(ready, config, progress)
            _ = ready.neighbours
            if on_start:
                on_start(ready, Schedule([]))
            return ready
        # a record of its own: what is written must not say that it is unfinished
        live = empty_prediction(tiles, model, dict(record))
        _ = live.neighbours  # found here: whoever looks at the growing map must not wait for it
        kept = KeptTiles.of(record, tiles, model.seen_dims)
        growing = Growing(slide, model, config, store, live, kept, on_block, on_part)
        there = growing.take(known)
        with growing.at_work():
            if on_start:
                on_start(live, growing.schedule)
            for block in there:
                growing.tell(block)
            started = perf_counter() - getattr(progress, "waited_s", 0.0)
            growing.stain = stain_map(slide, model, config, progress=progress)
            growing.sampler = Sampler(slide, tiles, tissue)
            if len(growing.schedule):
                _embed(growing, forward, progress)
            seconds = perf_counter() - started - getattr(progress, "waited_s", 0.0)
            run = _run(len(tiles), sum(map(len, there)), seconds)
            some = growing.sampler.sample()
            check = check_tiles(slide, model, tiles, tissue, some, config=config, stain=growing.stain)
            # in the map that is shown, and in what is written
            live.record[SLIDE_CHECK] = record[SLIDE_CHECK] = slide_qc_of(live, check).as_dict()
            store.finish(live)
    live.record["run"], live.path = run, path
    if bad := live.n_unreadable:
        progress.note(
            f"{bad} of {len(tiles)} tiles of {slide.path.name} could not be decoded; they are empty in the map"
        )
    return live


def _tissue_of(slide: Slide, config: PredictConfig, forward: Forward | CrewForward) -> Tissue:
    """Find a slide's tissue where its encoder computes: here, or by a worker."""
    from napari_peka.infer.forward import Forward

    if isinstance(forward, Forward):
        return find_tissue(slide, threshold=config.tissue_threshold)
    return forward.find_tissue(slide)


def _say_organ(ready: Prediction, config: PredictConfig, progress: Progress) -> None:
    """Let a result that is there say of which organ its slide is, where that is said now: it decides no number."""
    settings = ready.record.get("settings", {})
    if config.organ is None or settings.get("organ") == config.organ:
        return
    ready.record["settings"] = settings | {"organ": config.organ}
    ready.record[SLIDE_CHECK] = slide_qc_of(ready).as_dict()
    try:
        amend_record(ready)
    except StoreError as e:  # it may be read by those who may not write
        progress.note(f"the organ was not written into the result: {e}")


def load_forward(model: Model, config: PredictConfig | None = None, *, offline: bool = False) -> Forward:
    """Choose device and number format for a model; its encoder is loaded at the first tile.

    Parameters
    ----------
    model
        From :func:`load_model`.
    config
        ``device``, ``precision``, ``backend`` and ``batch_size`` count.
    offline
        Never fetch the encoder's weights from the network.

    Raises
    ------
    DeviceError
        If the device is not there.
    SettingError
        If the backend is not installed, or does not compute on the device.
    """
    import torch

    from napari_peka.infer.forward import Forward
    from napari_peka.models.backends import TORCH, choose_backend, compiled
    from napari_peka.models.devices import choose_device, choose_precision
    from napari_peka.models.engines import AT_ONCE, TURNS
    from napari_peka.models.student import build_student
    from napari_peka.models.weights import weights_mark

    config = config or PredictConfig()
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    digest = model.embedding_digest
    backend = choose_backend(config.backend, device, dtype)

    def build() -> Student:
        if backend == TORCH:
            return build_student(model, offline=offline)
        encoder = compiled(
            lambda: build_student(model, offline=offline).encoder, backend, px=model.spec.preprocessing.tile_px,
            dtype=dtype, digest=digest + weights_mark(model.card), folder=kept_in(COMPILED),
        )  # fmt: skip
        return build_student(model, encoder=encoder)

    # an engine is given images for all of its streams several times over, and no more: the first tiles are there sooner
    images = AT_ONCE * TURNS * torch.get_num_threads() // model.spec.preprocessing.rotations
    enough = None if backend == TORCH else max(images, AT_ONCE)
    return Forward(build, device, dtype, config.batch_size or enough, model.seen_digest, backend)


def _check_kinds(slide: object, model: object) -> None:
    for value, opener in ((slide, "open_slide"), (model, "load_model")):
        if isinstance(value, (str, os.PathLike)):
            raise SettingError(f"{os.fspath(value)!r} is a name; open it first: napari_peka.{opener}({str(value)!r})")


def known_embeddings(path: Path, record: dict[str, Any]) -> Prediction | None:
    """Return a result from which only the gene head differs, or None."""
    now = record["identity"]
    try:
        before = identity_of_result(path) if path.exists() else {}
        if not before or [k for k in {**now, **before} if before.get(k) != now.get(k)] != ["model"]:
            return None
        known = read_prediction(path)
    except StoreError:
        return None
    return known if known.record["model"].get("embedding_digest") == record["model"]["embedding_digest"] else None


def readers_of(config: PredictConfig, forward: Forward) -> int:
    """Return the number of threads that read the slide."""
    cores = os.cpu_count() or 1
    return config.readers or (1 if forward.device.type == "cpu" else max(1, min(8, cores - 1)))


def _embed(growing: Growing, forward: Forward | CrewForward, progress: Progress) -> None:
    """Compute what is left of a map, here or by workers."""
    from napari_peka.infer.engine import embed
    from napari_peka.infer.forward import Forward

    tiles, schedule = growing.tiles, growing.schedule
    if not isinstance(forward, Forward):
        forward.embed(growing, progress)
        return
    progress.stage("loading the model")
    _ = forward.module
    progress.stage("predicting", len(tiles), done=len(tiles) - schedule.tiles_left)
    embed(
        growing.source, tiles, forward, schedule, growing.keep, on_part=growing.show_part,
        readers=readers_of(growing.config, forward), more_readers=growing.config.readers is None, progress=progress,
    )  # fmt: skip


def _run(tiles: int, resumed: int, seconds: float) -> dict[str, Any]:
    rate = (tiles - resumed) / seconds if seconds > 0 else 0.0
    return {
        "tiles": tiles,
        "resumed_tiles": resumed,
        "seconds": round(seconds, 3),
        "tiles_per_second": round(rate, 2),
    }


def record_of(slide: Slide, model: Model, tiles: TileTable, config: PredictConfig, forward: Maker) -> dict[str, Any]:
    """Return what made a result. ``identity`` holds all that decides its numbers: only equals may be mixed."""
    resolution = slide.resolution
    where = hashlib.sha256(np.ascontiguousarray(tiles.centre_yx).tobytes()).hexdigest()
    spec = {"size_px": tiles.spec.size_px, "mpp": tiles.spec.mpp, "stride_px": tiles.spec.stride_px}
    context = model.head.context_um
    if tiles.spec.footprint_px is not None:
        spec["footprint_px"] = tiles.spec.footprint_px
    return {
        "format": 1 if context is None and tiles.spec.footprint_px is None else FORMAT,
        "identity": {
            "slide": slide.fingerprint,
            "model": model.digest,
            "mpp": list(tiles.slide_mpp),
            "tile size": spec,
            "region or tissue": where,
            "precision": forward.precision,
            "device": forward.device.type,
            **stain_of(model, config),
        },
        "slide": {
            "name": slide.name,
            "file": slide.path.name,
            "fingerprint": slide.fingerprint,
            "shape": list(slide.shape),
        },
        "mpp": list(tiles.slide_mpp),
        "mpp_source": resolution.source if resolution else "given",
        **of_model(model),
        "tile_spec": spec,
        "grid_shape": list(tiles.grid_shape) if tiles.grid_shape else None,
        "settings": config.model_dump(),
        "versions": versions(),
        "notice": RESEARCH_USE,
    }


def stain_of(model: Model, config: PredictConfig) -> dict[str, str]:
    """Return what an identity says of the stain: nothing where it is left as it is, as in results of older versions."""
    if config.stain == "none":
        return {}
    return {"stain": stain_identity(target_of(model.carried, config.stain, model.name), config.stain)}


def of_model(model: Model) -> dict[str, Any]:
    """Return what a result's record says of the model that it is read by."""
    return {
        "model": {
            "name": model.name,
            "digest": model.digest,
            "embedding_digest": model.embedding_digest,
            "seen_digest": model.seen_digest,
            "description": model.spec.description,
            "tissue": model.spec.tissue,
            "pcc_split": model.spec.head.pcc_split,
            "neighbour_smoothing": model.spec.head.neighbour_smoothing,
            "rotations": model.spec.preprocessing.rotations,
            "views": list(model.spec.preprocessing.views),
            "passes_per_tile": model.passes,
            "hvg50": list(model.hvg50),
            # by which a check against measured spots tells whether the model has seen them
            "trained_on": [{k: t[k] for k in _TRAINED_ON if k in t} for t in model.trained_on],
        },
        "encoder": model.spec.encoder.name,
        "unit": model.head.unit,
        "context_um": model.head.context_um,
        **doubt_record(model.intervals),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    out = {"python": platform.python_version()}
    for name in ("napari-peka", "numpy", "torch", "timm", "anndata", "zarr", "openslide-python", "tifffile"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
