"""What a map's doubt looks like: layers that lie on the map and belong to it. There is no Qt in here.

Three of them: the map's own picture with tiles that fade, a number of doubt a tile, and hatching. None of them is taken
for a map; the map's layer knows them, so that they follow it to another gene and while it grows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.gui.layers import KEY, LayerTuple, fingerprint_of, gene_of, kept, prediction_of, raster_place
from napari_peka.gui.look import Look, colours
from napari_peka.io.figure import contrast_limits
from napari_peka.io.trust import UNLIKE as PERCENTILE
from napari_peka.io.trust import interval_width, tile_opacity, unlike

if TYPE_CHECKING:
    from napari_peka.core.raster import Raster
    from napari_peka.io.prediction import Prediction

MAP, WIDTH, UNLIKE = SHOWN = ("the map", "width of its 90 % interval", "how unlike the training data")
#: kinds of layers, from the lowest to the highest
FADED, NUMBER, HATCHED = KINDS = ("faded", "number", "hatched")
#: those that change with the gene
OF_VALUES = (FADED, NUMBER)
#: colours of a number of doubt: not those of maps
COLOURS = "cividis"
#: pixels a tile's side has in the finest picture of the hatching: as many as in the slide's own, or about
_FINE = 128
#: pixels from one line of the hatching to the next, and to where its dark and its light part end
_STEP, _DARK, _LIGHT = 16, 2, 4
_LINES = np.array([1] * _DARK + [2] * (_LIGHT - _DARK) + [0] * (_STEP - _LIGHT), np.uint8)
#: px below which a coarser picture is not needed
_COARSE = 256


@dataclass(frozen=True)
class Doubts:
    """How the doubt of a map is shown.

    Parameters
    ----------
    fade
        Whether doubtful tiles fade, by the rule of :func:`napari_peka.core.doubt.opacity`.
    hatch
        Whether tiles that are unlike the training data are hatched.
    shown
        One of :data:`SHOWN`: the map, or a number of doubt in its place.
    """

    fade: bool = False
    hatch: bool = True
    shown: str = MAP

    def as_json(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Any) -> Doubts:
        """Return what was kept as JSON; what is not there, or cannot be used, is as usual."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = given.get(field.name) if isinstance(given, dict) else None
            if value in SHOWN if field.name == "shown" else isinstance(value, bool):
                found[field.name] = value
        return cls(**found)


def doubts_of(layer: Any) -> Doubts:
    """Return how the doubt of a map's layer is shown."""
    found: Doubts = kept(layer).get("doubts") or Doubts()
    return found


def own_layers(layer: Any) -> dict[str, Any]:
    """Return the layers of a map's doubt that were made, by their kind."""
    found: dict[str, Any] = kept(layer).get("doubt_layers") or {}
    return found


def is_doubt(layer: Any) -> bool:
    """Whether a layer shows the doubt of a map."""
    return "doubt_of" in kept(layer)


def can_show(prediction: Prediction | None) -> set[str]:
    """Return what is known of a map's doubt: :data:`WIDTH` and :data:`UNLIKE`, or neither."""
    known = set()
    if prediction is not None and prediction.intervals is not None and prediction.intervals.known.any():
        known.add(WIDTH)
    if prediction is not None and prediction.ood is not None:
        known.add(UNLIKE)
    return known


def wanted(layer: Any) -> list[str]:
    """Return the kinds of layers that are to lie on a map, from the lowest to the highest."""
    prediction, doubts = prediction_of(layer), doubts_of(layer)
    known = can_show(prediction)
    if prediction is None or not known:
        return []
    hatch = doubts.hatch and bool(unlike(prediction).any())
    number = doubts.shown in known and (doubts.shown != WIDTH or gene_of(layer) is not None)
    return [kind for kind, on in zip(KINDS, (doubts.fade, number, hatch)) if on]


def made(layer: Any, kind: str) -> LayerTuple:
    """Return a layer of a map's doubt, lying on the map."""
    prediction = prediction_of(layer)
    assert prediction is not None
    blank = prediction.tiles.raster(np.full(len(prediction.tiles), np.nan, np.float32))
    settings = {
        **raster_place(prediction, blank),
        "blending": "translucent",
        "metadata": {KEY: {"doubt_of": prediction, "doubt": kind, "of": fingerprint_of(layer)}},
    }
    return {FADED: _faded, NUMBER: _number, HATCHED: _hatched}[kind](layer, prediction, settings)


def hatching_beside(layer: LayerTuple) -> list[LayerTuple]:
    """Return the hatching of a map that is in no viewer yet, as a layer; none where no tile is to be hatched."""
    one = SimpleNamespace(metadata=layer[1]["metadata"])
    return [made(one, HATCHED)] if HATCHED in wanted(one) else []


def refresh(layer: Any, kinds: tuple[str, ...] = KINDS) -> None:
    """Bring the layers of a map's doubt to what the map shows now: another gene, more tiles, other colours."""
    prediction, own = prediction_of(layer), own_layers(layer)
    if prediction is None or not own:
        return
    if FADED in own and FADED in kinds:
        _fill_faded(own[FADED], layer, prediction)
    if NUMBER in own and NUMBER in kinds:
        _fill_number(own[NUMBER], layer, prediction)
    if HATCHED in own and HATCHED in kinds:
        for level in own[HATCHED].data:
            level.take(unlike(prediction))
        own[HATCHED].refresh()


# -- fading ------------------------------------------------------------------------------------------------------


def opacity_of(layer: Any) -> float:
    """Return the opacity of a map as it is seen: where tiles fade, that of their picture."""
    return float(own_layers(layer).get(FADED, layer).opacity)


def set_opacity(layer: Any, opacity: float) -> None:
    """Give a map another opacity: the picture with tiles that fade, and the number, where these lie in its place."""
    own = own_layers(layer)
    own.get(FADED, layer).opacity = opacity
    if NUMBER in own:
        own[NUMBER].opacity = opacity


def recolour(layer: Any) -> None:
    """Give the picture of a map with tiles that fade the colours that the map has now."""
    faded = own_layers(layer).get(FADED)
    # with other values than those it was made of, refresh is still to come
    if faded is not None and faded.metadata[KEY].get("drawn") is layer.data:
        faded.data = _picture(layer, faded.metadata[KEY]["opacities"])


def _faded(layer: Any, prediction: Prediction, settings: dict[str, Any]) -> LayerTuple:
    opacities = _opacities(layer, prediction)
    settings["metadata"][KEY] |= {"opacities": opacities, "drawn": layer.data}
    settings |= {
        "name": f"{_name(layer)}, doubtful tiles fade", "rgb": True, "opacity": layer.opacity,
        "interpolation2d": layer.interpolation2d,
    }  # fmt: skip
    return _picture(layer, opacities), settings, "image"


def _fill_faded(faded: Any, layer: Any, prediction: Prediction) -> None:
    own = faded.metadata[KEY]
    own["opacities"], own["drawn"] = _opacities(layer, prediction), layer.data
    faded.data = _picture(layer, own["opacities"])
    faded.interpolation2d = layer.interpolation2d
    faded.name = f"{_name(layer)}, doubtful tiles fade"


def _opacities(layer: Any, prediction: Prediction) -> npt.NDArray[np.float32]:
    """Return how much of each pixel of a map is to be seen, ``(h, w)``."""
    gene, values = gene_of(layer), _values(layer, prediction)
    low, high = contrast_limits(values)
    shares = tile_opacity(prediction, gene, values, high - low)
    shares = np.ones(len(values), np.float32) if shares is None else shares
    return np.asarray(prediction.tiles.raster(shares).data, np.float32)


def _values(layer: Any, prediction: Prediction) -> npt.NDArray[np.float32]:
    """Return what a map shows at its tiles, ``(n,)``, in the prediction's unit; computed only where it must be."""
    gene, look = gene_of(layer), kept(layer).get("look") or Look()
    if gene is not None and look.shows_linear(prediction.unit):
        return prediction.values(gene)
    grid = prediction.tiles.grid_yx
    assert grid is not None
    y, x = (grid - grid.min(0)).T
    return np.asarray(layer.data[y, x], np.float32)


def _picture(layer: Any, opacities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return a map in its own colours as RGBA ``(h, w, 4)``, each tile with its opacity."""
    low, high = layer.contrast_limits
    table = np.rint(layer.colormap.map(np.linspace(0, 1, 256) ** layer.gamma) * 255).astype(np.uint8)
    seen = np.isfinite(layer.data) & np.isfinite(opacities)
    share = (np.where(seen, layer.data, low) - low) * (255 / max(high - low, 1e-12))
    picture = table[np.clip(share, 0, 255).astype(np.uint8)]
    picture[..., 3] = picture[..., 3] * np.where(seen, opacities, 0)
    return np.asarray(picture)


# -- a number of doubt -------------------------------------------------------------------------------------------


def _number(layer: Any, prediction: Prediction, settings: dict[str, Any]) -> LayerTuple:
    raster, name = _doubt(layer, prediction)
    settings |= {
        "name": name, "colormap": colours(COLOURS, False), "opacity": opacity_of(layer), "interpolation2d": "nearest",
        "contrast_limits": _limits(layer, raster.data),
    }  # fmt: skip
    return raster.data, settings, "image"


def _fill_number(number: Any, layer: Any, prediction: Prediction) -> None:
    raster, number.name = _doubt(layer, prediction)
    number.data = raster.data
    low, high = _limits(layer, raster.data)
    number.contrast_limits_range = (low, high)
    number.contrast_limits = (low, high)


def _doubt(layer: Any, prediction: Prediction) -> tuple[Raster, str]:
    gene = gene_of(layer)
    if doubts_of(layer).shown == UNLIKE or gene is None:
        ood = prediction.ood
        nothing = np.full(len(prediction.tiles), np.nan, np.float32)
        return prediction.tiles.raster(nothing if ood is None else ood), PERCENTILE
    width = interval_width(prediction, gene, _values(layer, prediction))
    nothing = np.full(len(prediction.tiles), np.nan, np.float32)
    raster = prediction.tiles.raster(nothing if width is None else width, prediction.unit)
    return raster, f"{gene}, width of the 90 % interval ({prediction.unit})"


def _limits(layer: Any, data: npt.NDArray[Any]) -> tuple[float, float]:
    return (0.0, 100.0) if doubts_of(layer).shown == UNLIKE else contrast_limits(data)


def _name(layer: Any) -> str:
    return gene_of(layer) or str(layer.name)


# -- hatching ----------------------------------------------------------------------------------------------------


class Hatching:
    """A picture of hatched tiles that is drawn where it is looked at: it has many pixels and holds none.

    Parameters
    ----------
    prediction
        The map.
    fine
        Pixels of a tile's side; less than 1: tiles of a pixel, all of them, and the pixel is hatched where one is.

    Notes
    -----
    Values: 0 nothing, 1 the dark line, 2 its light edge, which is seen on dark colours. Lines are as far from each
    other in every picture, so that they are on the screen however far one is away.
    """

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, prediction: Prediction, fine: float) -> None:
        self._tiles, self._fine = prediction.tiles, fine
        self.take(unlike(prediction))
        h, w = self._mask.shape
        self._times = max(1, round(fine))
        self.shape = (h * self._times, w * self._times)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    def take(self, hatched: npt.NDArray[np.bool_]) -> None:
        """Take which tiles are hatched, bool ``(n,)``."""
        mask = np.asarray(self._tiles.raster(hatched.astype(np.float32)).data > 0)  # NaN is not
        if self._fine < 1:
            many = round(1 / self._fine)
            padded = np.pad(mask, [(0, -n % many) for n in mask.shape])
            h, w = padded.shape
            mask = np.asarray(padded.reshape(h // many, many, w // many, many).any((1, 3)))
        self._mask = mask

    def __getitem__(self, at: Any) -> npt.NDArray[np.uint8]:
        at = at if isinstance(at, tuple) else (at,)
        rows, columns = (np.arange(n)[k] for n, k in zip(self.shape, (*at, slice(None), slice(None))))
        whole = np.shape(rows) + np.shape(columns)
        if 0 in whole:
            return np.zeros(whole, np.uint8)
        rows, columns = np.atleast_1d(rows), np.atleast_1d(columns)
        tiles = rows // self._times
        # rows are copied, not computed: there are few kinds of them, and what is looked at has a million pixels
        drawn = _LINES[(np.arange(_STEP)[:, None] + columns) % _STEP][rows % _STEP]
        first = int(tiles.min())
        drawn *= self._mask[first : tiles.max() + 1, columns // self._times][tiles - first]
        return np.asarray(drawn.reshape(whole))

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return self[:, :] if dtype is None else self[:, :].astype(dtype)


def _hatched(layer: Any, prediction: Prediction, settings: dict[str, Any]) -> LayerTuple:
    from napari.utils.colormaps import Colormap

    levels, fine = [Hatching(prediction, _FINE)], float(_FINE)
    while max(levels[-1].shape) > _COARSE:
        fine /= 2
        levels.append(Hatching(prediction, fine))
    # a layer's place is the centre of its first pixel, here a small one
    scale = np.array(settings["scale"]) / _FINE
    first = np.array(settings["translate"]) - np.array(settings["scale"]) / 2 + scale / 2
    ink = Colormap([[0, 0, 0, 0], [0.1, 0.1, 0.1, 1], [1, 1, 1, 0.8]], name="hatching")
    settings |= {
        "name": "unlike the training data (hatched)", "multiscale": True, "scale": tuple(scale),
        "translate": tuple(first), "colormap": ink, "contrast_limits": (0, 2), "opacity": 0.9,
        "interpolation2d": "nearest",
    }  # fmt: skip
    return levels, settings, "image"
