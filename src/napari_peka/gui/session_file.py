"""A session on disk: what was open and how it looked, as JSON beside the data. There is no Qt in here.

Paths are relative to the file where what they name lies below its folder, so that a folder can be moved or sent as a
whole. Regions stay in their own GeoJSON files, which QuPath reads too: a session names them and does not copy them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from napari.layers import Image
from pydantic import BaseModel, ValidationError

from napari_peka.core import files
from napari_peka.core.errors import PekaError, StoreError
from napari_peka.core.progress import NULL, Progress
from napari_peka.gui import doubt_layers, doubt_view, layers, map_layers, reader, region_layers
from napari_peka.gui.doubt_layers import Doubts
from napari_peka.gui.look import Look
from napari_peka.gui.places import regions_path
from napari_peka.gui.session import OpenSection, Session
from napari_peka.gui.words import in_the_window
from napari_peka.io.regions import regions_by_name, write_regions

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.slide import Slide

T = TypeVar("T")
ENDING = reader.SESSION_ENDING
SCHEMA = 1
#: what a section's request may hold that is a path
_PATHS = ("image",)


class _Shown(BaseModel):
    path: str
    visible: bool = True
    opacity: float = 1.0


class _Slide(_Shown):
    fingerprint: str = ""
    mpp: list[float] | None = None
    regions: str | None = None
    tissue_threshold: float | None = None


class _Map(_Shown):
    gene: str | None = None
    look: dict[str, Any] = {}
    contrast_limits: list[float] | None = None
    set: dict[str, Any] | None = None
    doubts: dict[str, Any] = {}


class _Section(BaseModel):
    path: str
    request: dict[str, Any] = {}


class _Camera(BaseModel):
    center: list[float]
    zoom: float


class SessionFile(BaseModel):
    """What a session's file says."""

    napari_peka_session: int
    slides: list[_Slide] = []
    maps: list[_Map] = []
    sections: list[_Section] = []
    model: str | None = None
    gene: str | None = None
    camera: _Camera | None = None


@dataclass
class Opened:
    """A session's things, opened and not shown yet.

    Parameters
    ----------
    said
        The file.
    slides, maps
        What could be opened, with what is said of it.
    sections
        Sections that could be read.
    problems
        A sentence for each thing that could not be had.
    """

    said: SessionFile
    slides: list[tuple[_Slide, Slide, dict[str, Any]]] = field(default_factory=list)
    maps: list[tuple[_Map, Prediction, Any]] = field(default_factory=list)
    sections: list[OpenSection] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def save_session(session: Session, path: Path | str) -> list[str]:
    """Write what is open and how it looks, and the regions that are drawn.

    Parameters
    ----------
    session
        The session.
    path
        Where to; ``.peka.json`` is appended where the name has another ending.

    Returns
    -------
    list of str
        A sentence for each thing that cannot be brought back.

    Raises
    ------
    StoreError
        If a file cannot be written.
    """
    path = Path(path).expanduser()
    if not path.name.endswith(ENDING):
        path = path.with_name(path.name.removesuffix(".json") + ENDING)
    base, problems = path.parent, []
    said = SessionFile(napari_peka_session=SCHEMA, model=_model(session.model, base), gene=session.gene)
    for layer in session.viewer.layers:
        if (slide := layers.slide_of(layer)) is not None:
            given = slide.resolution is not None and slide.resolution.source == "given"
            said.slides.append(
                _Slide(
                    **_shown(layer, slide.path, base), fingerprint=slide.fingerprint,
                    mpp=list(slide.mpp) if given else None, regions=_write_regions(session, slide, base),
                    tissue_threshold=layers.tissue_threshold_of(layer),
                )
            )  # fmt: skip
        elif (prediction := layers.prediction_of(layer)) is not None:
            if prediction.path is None:
                problems.append(f"{layer.name} is not finished or was never written, so it cannot be brought back")
                continue
            limits = list(map(float, layer.contrast_limits))
            look = map_layers.look_of(layer).as_json()
            said.maps.append(
                _Map(
                    **_shown(layer, prediction.path, base), gene=layers.gene_of(layer), look=look,
                    contrast_limits=limits, set=map_layers.set_of(layer),
                    doubts=doubt_layers.doubts_of(layer).as_json(),
                )
            )  # fmt: skip
    for item in session.sections():
        request = {k: _kept(Path(v), base) if k in _PATHS and v else v for k, v in item.request.items()}
        said.sections.append(_Section(path=_kept(item.section.path, base), request=request))
    camera = session.viewer.camera
    said.camera = _Camera(center=list(map(float, camera.center)), zoom=float(camera.zoom))
    files.write_whole(path, said.model_dump_json(indent=1).encode())
    return problems


def read_session(path: Path | str, *, progress: Progress = NULL) -> Opened:
    """Open what a session's file names; what is gone is a sentence, and the rest comes back.

    It touches no viewer: fit for a thread. :func:`show_session` shows what it returns.

    Raises
    ------
    StoreError
        If the file cannot be read, or is no session.
    """
    from napari_peka.io.prediction import read_prediction
    from napari_peka.io.section import read_section
    from napari_peka.io.slide import open_slide
    from napari_peka.io.statistics import gene_set_score

    path = Path(path).expanduser()
    said = _parse(path)
    base, opened = path.parent, Opened(said)
    progress.stage("opening", len(said.slides) + len(said.maps) + len(said.sections))

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except PekaError as e:
            opened.problems.append(in_the_window(str(e)))
            return None
        finally:
            progress.advance()

    for one in said.slides:
        mpp = None if one.mpp is None else (one.mpp[0], one.mpp[-1])
        slide = attempt(lambda one=one, mpp=mpp: open_slide(base / one.path, mpp=mpp))  # type: ignore[misc]
        if slide is None:
            continue
        if one.fingerprint and slide.fingerprint != one.fingerprint:
            opened.problems.append(f"{slide.path} is another slide than the one that was open")
        opened.slides.append((one, slide, _regions(base, one, opened.problems)))
    for kept in said.maps:
        prediction = attempt(lambda kept=kept: read_prediction(base / kept.path))  # type: ignore[misc]
        if prediction is not None:
            score = None
            if kept.set is not None:
                genes = [str(g) for g in kept.set.get("genes", [])]
                score = attempt(lambda p=prediction, genes=genes: gene_set_score(p, genes))  # type: ignore[misc]
            opened.maps.append((kept, prediction, score))
    for entry in said.sections:
        request = {k: base / v if k in _PATHS and v else v for k, v in entry.request.items()}
        try:
            section = attempt(lambda entry=entry, request=request: read_section(base / entry.path, **request))  # type: ignore[misc]
        except TypeError as e:
            opened.problems.append(f"{entry.path}: {e}")
            continue
        if section is not None:
            opened.sections.append(OpenSection(section, request))
    return opened


def show_session(session: Session, opened: Opened) -> None:
    """Show what was opened: layers are added, and what is there stays, but for maps that the session has too."""
    viewer = session.viewer
    with session.at_once():
        for said, slide, regions in opened.slides:
            if layers.layer_of_slide(viewer, slide.fingerprint) is None:  # one that is open stays as it is
                data, settings, _ = layers.slide_layer(slide, said.tissue_threshold)
                viewer.add_image(data, **(settings | {"visible": said.visible, "opacity": said.opacity}))
            else:
                slide.close()
            # a dock that is open may have brought them back by itself
            if regions and slide.resolution is not None and session.regions_of(slide) is None:
                data, settings, _ = region_layers.regions_layer(slide, regions)
                viewer.add_shapes(data, **settings)
        for kept, prediction, score in opened.maps:
            for old in [x for x in viewer.layers if layers.output_of(x) == prediction.path]:
                doubt_view.leave(viewer, old)
                viewer.layers.remove(old)  # the same map, as it was seen when the session was saved
            gene = map_layers.best_gene(prediction, (), kept.gene)
            look = Look.from_json(kept.look)
            data, settings, _ = map_layers.heatmap_layer(prediction, gene, look)
            settings |= {"visible": kept.visible, "opacity": kept.opacity}
            layer = Image(data, **settings)  # whole before it is added: docks show what they find in a new layer
            if score is not None and kept.set is not None:
                map_layers.show_score(layer, prediction, str(kept.set.get("name")), kept.set["genes"], score)
                data = layer.data
            if (score is not None or gene == kept.gene) and kept.contrast_limits is not None:
                low, high = kept.contrast_limits
                layer.contrast_limits_range = (min(low, np.nanmin(data)), max(high, np.nanmax(data)))
                layer.contrast_limits = (low, high)
            map_layers.show_colour_bar(layer)
            layer.metadata[layers.KEY]["doubts"] = Doubts.from_json(kept.doubts)
            viewer.add_layer(layer)
            layers.below_shapes(viewer, layer)
            doubt_view.show_doubts(viewer, layer)
    if any(slide.resolution is not None for _, slide, _ in opened.slides):
        layers.show_scale_bar(viewer)
    if opened.sections:
        session.add_sections(opened.sections)
    if opened.said.model:
        session.model = opened.said.model
    scored = any(score is not None for _, _, score in opened.maps)
    if opened.said.gene and not scored:  # docks would show it in the score's place
        session.gene = opened.said.gene
    if opened.said.camera is not None:
        viewer.camera.center = tuple(opened.said.camera.center)
        viewer.camera.zoom = opened.said.camera.zoom


def _parse(path: Path) -> SessionFile:
    try:
        return SessionFile.model_validate(json.loads(path.read_text("utf-8")))
    except OSError as e:
        raise StoreError(f"the session {path} cannot be read: {e.strerror or e}") from e
    except (ValueError, ValidationError) as e:
        raise StoreError(f"{path} is no session of napari-peka, or is damaged; open its slide and map by hand") from e


def _shown(layer: Any, path: Path, base: Path) -> dict[str, Any]:
    seen = doubt_layers.own_layers(layer).get(doubt_layers.NUMBER, layer)  # it lies in the map's place
    return {"path": _kept(path, base), "visible": bool(seen.visible), "opacity": doubt_layers.opacity_of(layer)}


def _kept(path: Path, base: Path) -> str:
    """Return a path as the file has it."""
    path, base = path.expanduser().resolve(), base.resolve()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _model(name: str, base: Path) -> str:
    """Return a model's name; its path in full, for a model is looked for by name in other places too."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _write_regions(session: Session, slide: Slide, base: Path) -> str | None:
    layer = session.regions_of(slide)
    if layer is None or slide.resolution is None:
        return None
    regions, path = region_layers.regions_of(layer, slide.mpp), regions_path(slide.path)
    if not regions:
        return None
    files.make_folder(path.parent)
    write_regions(path, regions)
    return _kept(path, base)


def _regions(base: Path, one: _Slide, problems: list[str]) -> dict[str, Any]:
    if one.regions is None:
        return {}
    try:
        return regions_by_name(base / one.regions)
    except PekaError as e:
        problems.append(in_the_window(str(e)))
        return {}
