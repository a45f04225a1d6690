"""The only place that knows what our layers are: slides and what belongs to them, and what is kept in a layer of ours.

Frames of reference: napari's ``translate`` is the *centre* of the first pixel, ours are edges (the first level-0 pixel
covers 0 to 1). A slide layer has no translation, so its world position is ``(level-0 position - 0.5) * mpp`` in µm,
(y, x), and a map is placed by the same rule. A slide of unknown resolution lies in pixels: mpp counts as 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.geometry import Rect
from napari_peka.core.raster import Raster

if TYPE_CHECKING:
    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.slide import Resolution, Slide

LayerTuple = tuple[Any, dict[str, Any], str]

#: our entry in a layer's metadata
KEY = "napari_peka"
UM = ("µm", "µm")
#: of outlines and words on the canvas: neither stains, maps nor a black ground have such a green
INK = "#00c853"


def slide_layer(slide: Slide, tissue_threshold: float | None = None) -> LayerTuple:
    """Return a slide as a lazy layer, in µm when its resolution is known and in pixels when not.

    Parameters
    ----------
    slide
        An open slide.
    tissue_threshold
        What a person chose for it; see :func:`tissue_threshold_of`.
    """
    levels = slide.pyramid
    many = len(levels) > 1
    settings = {
        "name": slide.name,
        "rgb": True,
        "multiscale": many,
        "metadata": {KEY: {"path": slide.path, "slide": slide, "tissue_threshold": tissue_threshold}},
        **slide_place(slide),
    }
    return (levels if many else levels[0]), settings, "image"


def tissue_layer(slide: Slide, tissue: Tissue) -> LayerTuple:
    """Return what was found to be tissue as a layer of one colour, lying on its slide."""
    from napari.utils.colormaps import Colormap

    raster = tissue.mask
    mpp = (1.0, 1.0) if slide.resolution is None else slide.resolution.mpp
    scale, first = raster.place_um(mpp)
    settings = {
        "name": f"tissue of {slide.name}",
        "scale": scale,
        "translate": first,
        "units": slide_place(slide)["units"],
        "rgb": False,
        "multiscale": False,
        "colormap": Colormap([[0.0, 0.8, 0.3, 0.0], [0.0, 0.8, 0.3, 1.0]], name="tissue"),
        "contrast_limits": (0.0, 1.0),
        "blending": "translucent",
        "opacity": 0.3,
        "interpolation2d": "nearest",
        "metadata": {KEY: {"tissue": slide.fingerprint}},
    }
    return raster.data.astype(np.float32), settings, "image"


def associated_layers(slide: Slide) -> list[LayerTuple]:
    """Return a slide's label, macro and other small images as layers in a row above it, a quarter as wide."""
    place, (_, width) = slide_place(slide), slide.shape
    found: list[LayerTuple] = []
    left = 0.0
    for name in small_images(slide):
        image = slide.associated_image(name)
        zoom = width / 4 / image.shape[1]  # level-0 pixels a pixel
        scale = np.multiply(place["scale"], zoom)
        settings = {
            "name": f"{name} of {slide.name}",
            "scale": scale,
            "translate": (-1.05 * image.shape[0] * scale[0], left),
            "units": place["units"],
            "rgb": True,
            "multiscale": False,
            "metadata": {KEY: {"associated": slide.fingerprint}},
        }
        left += 1.05 * image.shape[1] * scale[1]
        found.append((image, settings, "image"))
    return found


def small_images(slide: Slide) -> list[str]:
    """Return the names of what lies in a slide's file beside it, and is no overview of it."""
    return [name for name in slide.associated if name.lower() != "thumbnail"]


def who_says(resolution: Resolution) -> str:
    """Return where µm per pixel are from, for a person's eyes."""
    own = {"given": "given by you", "spot pitch": "from the distance of the spots"}
    return own.get(resolution.source, f"from the file: {resolution.source}")


def slide_words(slide: Slide) -> str:
    """Return what a slide is: size, resolution and who says it, maker, levels; and what a person should know."""
    y, x = slide.shape
    mpp = slide.resolution
    size = f"{x:,} × {y:,} px"
    if mpp is not None:
        mm = [f"{n * m / 1000:.1f}" for n, m in zip((x, y), mpp.mpp[::-1])]
        size += f", {mm[0]} × {mm[1]} mm<br>{np.mean(mpp.mpp):.4g} µm/px ({who_says(mpp)})"
    else:
        size += "<br>how large a pixel is, is not known"
    n = len(slide.level_shapes)
    said = "".join(f"<br>⚠ {w}" for w in slide.warnings)
    return f"{size}<br>{slide.vendor}, {n} level{'s' * (n > 1)}{said}"


def below_shapes(viewer: Any, layer: Any) -> None:
    """Move a new layer below drawn regions and points, which it would hide."""
    above = [i for i, x in enumerate(viewer.layers) if x is not layer and type(x).__name__ in ("Shapes", "Points")]
    if above and min(above) < viewer.layers.index(layer):
        viewer.layers.move(viewer.layers.index(layer), min(above))


def show_only(viewer: Any, slide: Slide) -> None:
    """Hide other slides and what lies on them, for all slides have their corner at one place.

    What was hidden so comes back when its own slide is shown; what a person hid stays hidden.
    """
    for layer in viewer.layers:
        own = fingerprint_of(layer)
        if own is None:
            continue
        entry = layer.metadata[KEY]
        if own == slide.fingerprint:
            if entry.pop("hidden", False):
                layer.visible = True
        elif layer.visible:
            entry["hidden"] = True
            layer.visible = False


def is_aside(viewer: Any, layer: Any) -> bool:
    """Whether a layer lies on a slide that is hidden while another one is looked at."""
    own = layer_of_slide(viewer, fingerprint_of(layer))
    if own is None or own.visible:
        return False
    return any(x.visible and slide_of(x) is not None for x in viewer.layers)


def keep_view(viewer: Any, factor_yx: npt.NDArray[np.float64]) -> None:
    """Go on looking at the same place once a slide was brought to another scale."""
    camera = viewer.camera
    camera.center = (*camera.center[:-2], *(np.array(camera.center[-2:]) * factor_yx).tolist())
    camera.zoom /= float(np.mean(factor_yx))


def set_resolution(layer: Any, slide: Slide) -> None:
    """Make an image layer the layer of `slide` and bring it from pixels to µm (or to another mpp)."""
    layer.metadata[KEY] = kept(layer) | {"path": slide.path, "slide": slide}
    for name, value in slide_place(slide).items():
        setattr(layer, name, value)


def rescale(layer: Any, factor_yx: npt.NDArray[np.float64]) -> None:
    """Scale a layer drawn on a slide by what the slide was scaled, so that it stays where it was drawn."""
    lead = layer.ndim - 2
    factor = np.concatenate([np.ones(lead), factor_yx])
    layer.scale, layer.translate = np.array(layer.scale) * factor, np.array(layer.translate) * factor
    layer.units = (*layer.units[:lead], *UM)


def show_scale_bar(viewer: Any) -> None:
    """Show napari's scale bar."""
    overlays = getattr(getattr(viewer, "canvas", None), "overlays", None)
    bar = getattr(overlays, "scale_bar", None) or viewer.scale_bar
    bar.visible = True


def slide_place(slide: Slide) -> dict[str, Any]:
    if slide.resolution is None:
        return {"scale": (1.0, 1.0), "translate": (0.0, 0.0), "units": ("pixel", "pixel")}
    return {"scale": slide.resolution.mpp, "translate": (0.0, 0.0), "units": UM}


def raster_place(prediction: Prediction, raster: Raster) -> dict[str, Any]:
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
    found: Slide | None = kept(layer).get("slide")
    return found


def tissue_threshold_of(layer: Any) -> float | None:
    """Return the tissue threshold that a person chose for a slide's layer, as :func:`find_tissue` takes it; or None."""
    found: float | None = kept(layer).get("tissue_threshold")
    return found


def set_tissue_threshold(layer: Any, threshold: float | None) -> None:
    """Keep a tissue threshold with a slide's layer."""
    layer.metadata[KEY]["tissue_threshold"] = threshold


def layer_of_slide(viewer: Any, fingerprint: str | None) -> Any:
    """Return the layer of the slide that has a fingerprint, or None."""
    shown = ((x, slide_of(x)) for x in viewer.layers)
    return next((x for x, slide in shown if slide is not None and slide.fingerprint == fingerprint), None)


def image_path(layer: Any) -> Path | None:
    """Return the file of a layer that may be a slide: ours, or any RGB image that was opened from a file."""
    if slide := slide_of(layer):
        return slide.path
    path = getattr(getattr(layer, "source", None), "path", None)
    return Path(path) if path and getattr(layer, "rgb", False) else None


def fingerprint_of(layer: Any) -> str | None:
    """Return the fingerprint of the slide that a layer shows or lies on; None for layers that are not ours."""
    if (slide := slide_of(layer)) is not None:
        return slide.fingerprint
    if (prediction := prediction_of(layer)) is not None:
        found: str | None = prediction.record.get("slide", {}).get("fingerprint")
        return found
    entry = kept(layer)
    if (of := entry.get("of")) is not None:  # spots while a model learns, or of a check
        return of if isinstance(of, str) else str(of.section.slide.fingerprint)
    kinds = ("tissue", "regions", "associated", *(["spots"] if "section" in entry else []))
    return next((str(entry[kind]) for kind in kinds if entry.get(kind)), None)


def is_part_of(layer: Any, kind: str, slide: Slide) -> bool:
    """Whether a layer is the ``"tissue"`` or the ``"regions"`` of a slide, or one of its ``"associated"`` images."""
    return kept(layer).get(kind) == slide.fingerprint


def adopt(layer: Any, slide: Slide) -> None:
    """Say that a layer of tissue or regions belongs to the same slide, opened again."""
    for kind in ("tissue", "regions", "associated"):
        if kind in kept(layer):
            layer.metadata[KEY][kind] = slide.fingerprint


def prediction_of(layer: Any) -> Prediction | None:
    """Return the prediction of a map's layer, or None."""
    found: Prediction | None = kept(layer).get("prediction")
    return found


def is_map_of(layer: Any, slide: Slide) -> bool:
    """Whether a layer is a map that was predicted on a slide."""
    prediction = prediction_of(layer)
    return prediction is not None and prediction.record.get("slide", {}).get("fingerprint") == slide.fingerprint


def slide_under(viewer: Any, prediction: Prediction) -> Slide | None:
    """Return the open slide that a map was predicted on, told by its fingerprint; or None."""
    wanted = prediction.record.get("slide", {}).get("fingerprint")
    slides = (slide_of(layer) for layer in viewer.layers)
    return next((s for s in slides if s is not None and s.fingerprint == wanted), None)


def gene_of(layer: Any) -> str | None:
    """Return the gene that a map's layer shows, or None."""
    found: str | None = kept(layer).get("gene")
    return found


def unit_of(layer: Any) -> str:
    """Return the unit of the values that a map's layer shows."""
    return str(kept(layer).get("unit", ""))


def map_label(layer: Any) -> str:
    """Return what a map's layer is called among others: its name and its slide's."""
    prediction = prediction_of(layer)
    slide = prediction.record.get("slide", {}).get("name") if prediction else None
    return f"{layer.name} · {slide}" if slide else str(layer.name)


def output_of(layer: Any) -> Path | None:
    """Return the file that a map's layer belongs to, also while that is being written; or None."""
    found: Path | None = kept(layer).get("path")
    return found


def set_output(layer: Any, path: Path) -> None:
    """Say which file a map's layer belongs to."""
    layer.metadata[KEY]["path"] = path


def kept(layer: Any) -> dict[str, Any]:
    entry = layer.metadata.get(KEY) if layer is not None else None
    return entry if isinstance(entry, dict) else {}


def visible_rect(viewer: Any, layer: Any) -> Rect | None:
    """Return the part of a slide that the viewer shows, in level-0 pixels; None when it shows all or nothing."""
    corners = in_view(viewer, layer)
    if corners is None or (corners[1] <= corners[0]).any():
        return None
    low, high = corners
    return Rect(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))


def in_view(viewer: Any, layer: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Return the least and the largest (y, x) of a slide that the viewer shows, in level-0 pixels.

    The least lies beyond the largest when nothing is shown. None when all is, or there is no canvas.
    """
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
    return None if (high - low >= 0.999 * np.array((height, width))).all() else (low, high)
