"""The only place that speaks napari layers: slides and maps as layers, the reader and the sample data.

Frames of reference: napari's ``translate`` is the *centre* of the first pixel, ours are edges (the first level-0 pixel
covers 0 to 1). A slide layer has no translation, so its world position is ``(level-0 position - 0.5) * mpp`` in µm,
(y, x), and a map is placed by the same rule. A slide of unknown resolution lies in pixels: mpp counts as 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.blend import PALETTES, blend
from napari_peka.core.errors import PekaError, SettingError
from napari_peka.core.geometry import Block, Rect
from napari_peka.core.raster import Raster
from napari_peka.gui.look import Look, colours, for_matplotlib
from napari_peka.gui.preferences import usual_look

if TYPE_CHECKING:
    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.slide import Slide
    from napari_peka.io.store import Prediction

LayerTuple = tuple[Any, dict[str, Any], str]

#: our entry in a layer's metadata
KEY = "napari_peka"
UM = ("µm", "µm")
OPACITY = 0.6
#: px (width, height): tall enough for several ticks
BAR_SIZE = (20.0, 260.0)
SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".ome.tif", ".ome.tiff", ".ome.zarr")
RESULT_ENDING, SESSION_ENDING = ".peka.zarr", ".peka.json"
#: a tif without pyramid is taken for a slide from this longer side on, px
_SLIDE_PX = 4096


def slide_layer(slide: Slide) -> LayerTuple:
    """Return a slide as a lazy layer, in µm when its resolution is known and in pixels when not."""
    levels = slide.pyramid
    many = len(levels) > 1
    settings = {
        "name": slide.name,
        "rgb": True,
        "multiscale": many,
        "metadata": {KEY: {"path": slide.path, "slide": slide}},
        **_slide_place(slide),
    }
    return (levels if many else levels[0]), settings, "image"


def heatmap_layer(prediction: Prediction, gene: str, look: Look | None = None) -> LayerTuple:
    """Return the map of `gene` as one layer with a pixel a tile, lying on the slide in µm.

    Parameters
    ----------
    prediction
        The map.
    gene
        Symbol or Ensembl id.
    look
        How it is to look; None: as the preferences say.

    Raises
    ------
    UnknownName
        If the model does not know the gene.
    """
    look = look or usual_look()
    raster = prediction.raster(gene)
    name = prediction.genes[prediction.head.index(gene)]
    data = look.values(raster.data, prediction.unit)
    settings = {
        "name": f"{name} ({look.unit(prediction.unit)})",
        **_raster_place(prediction, raster),
        "colormap": colours(look.colormap, look.fade),
        "contrast_limits": look.limits(data),
        "blending": "translucent",
        "opacity": OPACITY,
        "interpolation2d": "linear" if look.smooth else "nearest",
        "metadata": {
            KEY: {
                "prediction": prediction,
                "gene": name,
                "path": prediction.path,
                "look": look,
                "unit": look.unit(prediction.unit),
            }
        },
    }
    return data, settings, "image"


def tissue_layer(slide: Slide, tissue: Tissue) -> LayerTuple:
    """Return what was found to be tissue as a layer of one colour, lying on its slide."""
    raster = tissue.mask
    mpp = (1.0, 1.0) if slide.resolution is None else slide.resolution.mpp
    scale, first = raster.place_um(mpp)
    settings = {
        "name": f"tissue of {slide.name}",
        "scale": scale,
        "translate": first,
        "units": _slide_place(slide)["units"],
        "rgb": False,
        "multiscale": False,
        "colormap": "green",
        "contrast_limits": (0.0, 1.0),
        "blending": "additive",
        "opacity": 0.3,
        "interpolation2d": "nearest",
        "metadata": {KEY: {"tissue": slide.fingerprint}},
    }
    return raster.data.astype(np.float32), settings, "image"


def is_part_of(layer: Any, kind: str, slide: Slide) -> bool:
    """Whether a layer is the ``"tissue"`` or the ``"regions"`` of a slide."""
    return _ours(layer).get(kind) == slide.fingerprint


def is_map_of(layer: Any, slide: Slide) -> bool:
    """Whether a layer is a map that was predicted on a slide."""
    prediction = prediction_of(layer)
    return prediction is not None and prediction.record.get("slide", {}).get("fingerprint") == slide.fingerprint


def adopt(layer: Any, slide: Slide) -> None:
    """Say that a layer of tissue or regions belongs to the same slide, opened again."""
    for kind in ("tissue", "regions"):
        if kind in _ours(layer):
            layer.metadata[KEY][kind] = slide.fingerprint


def slide_words(slide: Slide) -> str:
    """Return what a slide is: size, resolution and who says it, maker, levels; and what a person should know."""
    y, x = slide.shape
    mpp = slide.resolution
    size = f"{x:,} × {y:,} px"
    if mpp is not None:
        mm = [f"{n * m / 1000:.1f}" for n, m in zip((x, y), mpp.mpp[::-1])]
        size += f", {mm[0]} × {mm[1]} mm<br>{np.mean(mpp.mpp):.4g} µm/px ({mpp.source})"
    else:
        size += "<br>it does not say how large a pixel is"
    n = len(slide.level_shapes)
    kept = f"; {', '.join(slide.associated)} not shown" if slide.associated else ""
    said = "".join(f"<br>⚠ {w}" for w in slide.warnings)
    return f"{size}<br>{slide.vendor}, {n} level{'s' * (n > 1)}{kept}{said}"


def blend_layer(prediction: Prediction, genes: Sequence[str], palette: str, look: Look) -> LayerTuple:
    """Return up to three genes as one picture, each in its colour of a palette, lying on the slide in µm.

    Parameters
    ----------
    prediction
        The map.
    genes
        Symbols or Ensembl ids; an empty text leaves its colour out.
    palette
        One of :data:`napari_peka.core.blend.PALETTES`.
    look
        Whose percentiles and scale count.

    Raises
    ------
    UnknownName
        If the model does not know a gene.
    """
    named = [(g, c, w) for g, c, w in zip(genes, PALETTES[palette], palette.split(", ")) if g]
    names = [prediction.genes[prediction.head.index(g)] for g, _, _ in named]
    rasters = [prediction.raster(g) for g in names]
    maps = [look.values(r.data, prediction.unit) for r in rasters]
    picture = blend(maps, [look.limits(m) for m in maps], [c for _, c, _ in named])
    settings = _raster_place(prediction, rasters[0]) | {
        "name": " + ".join(f"{name} ({word})" for name, (_, _, word) in zip(names, named)),
        "rgb": True,
        "blending": "translucent",
        "interpolation2d": "linear" if look.smooth else "nearest",
        "metadata": {KEY: {"blend": prediction}},
    }
    return picture, settings, "image"


def is_blend_of(layer: Any, prediction: Prediction) -> bool:
    """Whether a layer is the :func:`blend_layer` of a prediction."""
    return _ours(layer).get("blend") is prediction


def as_beside(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a map's settings for a view of its own: it is looked at only, and no dock takes it for a map."""
    own = settings["metadata"][KEY]
    entry = {"beside": True, "unit": own["unit"]}
    return settings | {"name": f"{own['gene']}, {own['unit']}", "metadata": {KEY: entry}, "opacity": 1.0}


def is_beside(layer: Any) -> bool:
    """Whether a layer is a map in a view of its own."""
    return bool(_ours(layer).get("beside"))


def unreadable_layer(prediction: Prediction) -> LayerTuple:
    """Return the tiles that could not be decoded as a layer of one colour, lying on the slide in µm."""
    raster = prediction.tiles.raster(np.where(prediction.read_ok, np.nan, 1.0), "unreadable")
    settings = {
        "name": "unreadable tiles",
        **_raster_place(prediction, raster),
        "colormap": "red",
        "contrast_limits": (0.0, 1.0),
        "blending": "translucent",
        "opacity": OPACITY,
        "interpolation2d": "nearest",
        "metadata": {KEY: {"unreadable": prediction}},
    }
    return raster.data, settings, "image"


def shows_unreadable(layer: Any, prediction: Prediction | None) -> bool:
    """Whether a layer is the :func:`unreadable_layer` of a prediction."""
    return prediction is not None and _ours(layer).get("unreadable") is prediction


def update_heatmap(layer: Any, prediction: Prediction, gene: str) -> None:
    """Show another gene (or prediction of the same tiles) in a map's layer, in place."""
    name, look = prediction.genes[prediction.head.index(gene)], look_of(layer)
    layer.data = look.values(prediction.raster(gene).data, prediction.unit)
    _keep(layer, prediction, name, look.unit(prediction.unit))
    layer.name = f"{name} ({look.unit(prediction.unit)})"
    fit_contrast(layer)


def show_values(layer: Any, prediction: Prediction, name: str, unit: str, values: npt.NDArray[np.float32]) -> None:
    """Show any number a tile in a map's layer, in place; no gene is then shown there."""
    layer.data = prediction.tiles.raster(values, unit).data
    _keep(layer, prediction, None, unit)
    layer.name = f"{name} ({unit})"
    fit_contrast(layer, anew=True)


def fill_blocks(layer: Any, blocks: Sequence[Block]) -> None:
    """Write newly finished blocks of a growing prediction into its map's layer: cheap at any number of tiles."""
    prediction, gene = prediction_of(layer), gene_of(layer)
    if prediction is None or gene is None or not blocks:
        return
    grid = prediction.tiles.grid_yx
    assert grid is not None
    rows = prediction.changed_by(blocks)
    at = grid[rows] - grid.min(0)
    layer.data[at[:, 0], at[:, 1]] = look_of(layer).values(prediction.values(gene, rows), prediction.unit)
    fit_contrast(layer)
    layer.refresh()


def fit_contrast(layer: Any, anew: bool = False) -> None:
    """Spread the colours over the values that are there; those of a locked look stay, unless they are wanted anew."""
    look = look_of(layer)
    low, high = colours_of(layer) if look.locked and not anew else look.limits(layer.data)
    finite = layer.data[np.isfinite(layer.data)]
    reach = (min(low, float(finite.min())), max(high, float(finite.max()))) if len(finite) else (low, high)
    layer.contrast_limits_range = reach
    layer.contrast_limits = (low, high)


def colours_of(layer: Any) -> tuple[float, float]:
    """Return the values at both ends of a map's colour bar, in the gene's unit."""
    low, high = layer.contrast_limits
    return float(low), float(high)


def figure_look(layer: Any) -> dict[str, Any]:
    """Return a map's colours and limits as :func:`napari_peka.write_map` takes them, which shows the map's own unit."""
    look, prediction = look_of(layer), prediction_of(layer)
    same = prediction is not None and not look.shows_linear(prediction.unit)
    return {"colormap": for_matplotlib(look.colormap)} | ({"limits": colours_of(layer)} if same else {})


def show_colour_bar(layer: Any) -> None:
    """Show a map's colour bar, titled by the layer's name: gene and unit."""
    layer.colorbar.size = BAR_SIZE
    layer.colorbar.visible = True
    layer.name_overlay.position = layer.colorbar.position
    layer.name_overlay.visible = True


def show_scale_bar(viewer: Any) -> None:
    """Show napari's scale bar."""
    overlays = getattr(getattr(viewer, "canvas", None), "overlays", None)
    bar = getattr(overlays, "scale_bar", None) or viewer.scale_bar
    bar.visible = True


def set_resolution(layer: Any, slide: Slide) -> None:
    """Make an image layer the layer of `slide` and bring it from pixels to µm (or to another mpp)."""
    layer.metadata[KEY] = {"path": slide.path, "slide": slide}
    for name, value in _slide_place(slide).items():
        setattr(layer, name, value)


def rescale(layer: Any, factor_yx: npt.NDArray[np.float64]) -> None:
    """Scale a layer drawn on a slide by what the slide was scaled, so that it stays where it was drawn."""
    lead = layer.ndim - 2
    factor = np.concatenate([np.ones(lead), factor_yx])
    layer.scale, layer.translate = np.array(layer.scale) * factor, np.array(layer.translate) * factor
    layer.units = (*layer.units[:lead], *UM)


def _slide_place(slide: Slide) -> dict[str, Any]:
    if slide.resolution is None:
        return {"scale": (1.0, 1.0), "translate": (0.0, 0.0), "units": ("pixel", "pixel")}
    return {"scale": slide.resolution.mpp, "translate": (0.0, 0.0), "units": UM}


def _raster_place(prediction: Prediction, raster: Raster) -> dict[str, Any]:
    scale, first = raster.place_um(prediction.tiles.slide_mpp)
    return {
        "scale": scale,
        "translate": first,
        "units": UM,
        "rgb": False,
        "multiscale": False,
    }


# -- what a layer is ---------------------------------------------------------------------------------------------


def slide_of(layer: Any) -> Slide | None:
    """Return the slide of a layer, or None."""
    found: Slide | None = _ours(layer).get("slide")
    return found


def slide_under(viewer: Any, prediction: Prediction) -> Slide | None:
    """Return the open slide that a map was predicted on, told by its fingerprint; or None."""
    wanted = prediction.record.get("slide", {}).get("fingerprint")
    slides = (slide_of(layer) for layer in viewer.layers)
    return next((s for s in slides if s is not None and s.fingerprint == wanted), None)


def prediction_of(layer: Any) -> Prediction | None:
    """Return the prediction of a map's layer, or None."""
    found: Prediction | None = _ours(layer).get("prediction")
    return found


def look_of(layer: Any) -> Look:
    """Return how a map's layer looks."""
    found: Look = _ours(layer).get("look") or Look()
    return found


def set_look(layer: Any, look: Look) -> None:
    """Give a map's layer another look; colours are spread anew where contrast or scale change."""
    before, prediction, gene = look_of(layer), prediction_of(layer), gene_of(layer)
    layer.metadata[KEY]["look"] = look
    if (look.colormap, look.fade) != (before.colormap, before.fade) or look.smooth != before.smooth:
        look.dress(layer)
    rescaled = look.linear != before.linear
    if rescaled and prediction is not None and gene is not None:
        layer.data = look.values(prediction.raster(gene).data, prediction.unit)
        _keep(layer, prediction, gene, look.unit(prediction.unit))
        layer.name = f"{gene} ({look.unit(prediction.unit)})"
    if rescaled or look.percentiles != before.percentiles:
        fit_contrast(layer, anew=True)


def unit_of(layer: Any) -> str:
    """Return the unit of the values that a map's layer shows."""
    return str(_ours(layer).get("unit", ""))


def _keep(layer: Any, prediction: Prediction, gene: str | None, unit: str) -> None:
    path = prediction.path or output_of(layer)
    layer.metadata[KEY] = {
        "prediction": prediction, "gene": gene, "path": path, "look": look_of(layer), "unit": unit,
    }  # fmt: skip


def gene_of(layer: Any) -> str | None:
    """Return the gene that a map's layer shows, or None."""
    found: str | None = _ours(layer).get("gene")
    return found


def output_of(layer: Any) -> Path | None:
    """Return the file that a map's layer belongs to, also while that is being written; or None."""
    found: Path | None = _ours(layer).get("path")
    return found


def map_label(layer: Any) -> str:
    """Return what a map's layer is called among others: its name and its slide's."""
    prediction = prediction_of(layer)
    slide = prediction.record.get("slide", {}).get("name") if prediction else None
    return f"{layer.name} · {slide}" if slide else str(layer.name)


def set_output(layer: Any, path: Path) -> None:
    """Say which file a map's layer belongs to."""
    layer.metadata[KEY]["path"] = path


def image_path(layer: Any) -> Path | None:
    """Return the file of a layer that may be a slide: ours, or any RGB image that was opened from a file."""
    if slide := slide_of(layer):
        return slide.path
    path = getattr(getattr(layer, "source", None), "path", None)
    return Path(path) if path and getattr(layer, "rgb", False) else None


def _ours(layer: Any) -> dict[str, Any]:
    entry = layer.metadata.get(KEY) if layer is not None else None
    return entry if isinstance(entry, dict) else {}


# -- views -------------------------------------------------------------------------------------------


def visible_rect(viewer: Any, layer: Any) -> Rect | None:
    """Return the part of a slide that the viewer shows, in level-0 pixels; None when it shows all or nothing."""
    height, width = (layer.data[0] if layer.multiscale else layer.data).shape[:2]
    try:
        canvas = np.array(viewer.canvas.size, float)
    except (AttributeError, TypeError):
        return None
    centre, zoom = np.array(viewer.camera.center[-2:], float), float(viewer.camera.zoom)
    if zoom <= 0 or not canvas.all():
        return None
    half = canvas / zoom / 2
    low, high = (np.array(layer.world_to_data(centre + s * half)[:2]) + 0.5 for s in (-1, 1))
    low, high = np.maximum(low, 0), np.minimum(high, (height, width))
    if (high <= low).any() or (high - low >= 0.999 * np.array((height, width))).all():
        return None
    return Rect(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))


# -- hooks of the manifest ---------------------------------------------------------------------------------------


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerTuple]] | None:
    """Return a reader for slides and predicted maps, or None for anything else; nothing is decoded."""
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths or not all(_is_ours(Path(p)) for p in paths):
        return None
    return read_layers


def read_layers(path: str | Sequence[str]) -> list[Any]:
    """Open slides and predicted maps; an error is one sentence in the viewer, never a traceback."""
    from napari_peka.io.slide import open_slide
    from napari_peka.io.store import read_prediction

    layers: list[LayerTuple] = []
    for one in [path] if isinstance(path, (str, Path)) else path:
        try:
            if Path(one).name.lower().endswith(SESSION_ENDING):
                _restore(Path(one))
            elif Path(one).name.lower().endswith(RESULT_ENDING):
                prediction = read_prediction(one)
                layers.append(heatmap_layer(prediction, best_gene(prediction)))
            else:
                slide = open_slide(one)
                layers.append(slide_layer(slide))
                _say(f"{slide.path.name}: {w}" for w in slide.warnings)
        except PekaError as e:
            _say([str(e)], error=True)
    return layers or [(None,)]  # npe2's word for "read, and nothing to show"


def _restore(path: Path) -> None:
    """Bring a session back into the viewer that is open."""
    from napari import current_viewer

    from napari_peka.gui.session import session_of
    from napari_peka.gui.session_file import read_session, show_session

    viewer = current_viewer()
    if viewer is None:
        raise SettingError("a session is opened into a viewer; there is none")
    opened = read_session(path)
    show_session(session_of(viewer), opened)
    _say(opened.problems)


def sample_slide_data() -> list[LayerTuple]:
    """Return the embedded slide."""
    from napari_peka.io.sample import sample_slide
    from napari_peka.io.slide import open_slide

    return [slide_layer(open_slide(sample_slide()))]


def best_gene(prediction: Prediction, wish: Iterable[str] = ("ERBB2",)) -> str:
    """Return the first known gene of `wish`, or else the one with the highest held-out correlation."""
    for gene in wish:
        if (at := prediction.head.find(gene)) is not None:
            return prediction.genes[at]
    pcc = prediction.head.pcc
    if pcc is None or not np.isfinite(pcc).any():
        return prediction.genes[0]
    return prediction.genes[int(np.nanargmax(pcc))]


def _say(sentences: Iterable[str], error: bool = False) -> None:
    from napari.utils.notifications import show_error, show_warning

    for sentence in sentences:
        (show_error if error else show_warning)(sentence)


def _is_ours(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith((*SLIDE_ENDINGS, RESULT_ENDING, SESSION_ENDING)):
        return True
    return name.endswith((".tif", ".tiff")) and _tif_is_slide(path)


def _tif_is_slide(path: Path) -> bool:
    """Whether a tif looks like a scan: 8-bit colour in tiles, with a pyramid or very large. Reads one header."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            colour = page.samplesperpixel in (3, 4) and page.bitspersample == 8
            large = max(page.imagelength, page.imagewidth) >= _SLIDE_PX
            levels = len(file.pages) > 1 or bool(page.subifds)
            return bool(colour and page.is_tiled and (large or levels))
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return False
