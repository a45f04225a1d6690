"""Measured spots as Points layers: measured, predicted and their difference, and the places where errors lie together.

Frames of reference: as in :mod:`napari_peka.gui.layers`; spots lie on the map, by its µm per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.gui.layers import KEY, UM, LayerTuple
from napari_peka.gui.map_layers import BAR_SIZE
from napari_peka.io.figure import COLORMAP, contrast_limits

if TYPE_CHECKING:
    from napari_peka.workflows.check import Check
    from napari_peka.workflows.check_places import Place

MEASURED, PREDICTED, DIFFERENCE = KINDS = ("measured", "predicted", "difference")
#: diverging and readable with colour-blind eyes: orange below zero, purple above, as in reports
DIVERGING = "PuOr"
#: of outlines, seen on stained tissue and on dark ground: more than predicted, less than predicted
MORE, LESS = "#b36bff", "#ff9d2e"
SELECTED, PLAIN = "#00e5ff", "#4d4d4d"
#: share of a spot's diameter that its border is wide, selected or not
_BORDER = {True: 0.16, False: 0.04}
#: points: a name on the whole canvas, and in a field of the grid
_NAME_SIZE = {False: 10.0, True: 6.0}
Limits = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Values:
    """One gene at the spots of a check, ``(n,)`` each; NaN in `predicted` outside the map."""

    check: Check
    gene: str
    measured: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.float32]

    @classmethod
    def of(cls, check: Check, gene: str) -> Values:
        """Take the values of a gene."""
        gene = check.genes[check.index(gene)]
        return cls(check, gene, check.measured(gene), check.predicted(gene))

    @property
    def difference(self) -> npt.NDArray[np.float32]:
        """Measured less predicted."""
        return np.asarray(self.measured - self.predicted)

    def features(self) -> Any:
        """Return what a person reads who hovers over a spot."""
        import pandas as pd

        columns = {kind: getattr(self, kind).astype(np.float64) for kind in KINDS}
        return pd.DataFrame({"spot": list(self.check.spot_ids), **columns})

    def limits(self) -> Limits:
        """Return the ends of one colour scale for measured and predicted."""
        return contrast_limits(np.concatenate([self.measured, self.predicted]))

    def reach(self) -> Limits:
        """Return the least and the greatest value, measured or predicted."""
        both = np.concatenate([self.measured, self.predicted])
        both = both[np.isfinite(both)]
        low, high = float(both.min()), float(both.max())
        return (low, high) if high > low else (low - 0.5, low + 0.5)

    def difference_limits(self) -> Limits:
        """Return the ends of the difference's colour scale, as far from zero either way."""
        end = max(contrast_limits(np.abs(self.difference))[1], 1e-6)
        return -end, end


def spots_layer(values: Values, kind: str) -> LayerTuple:
    """Return the spots as a layer of discs of their own size, coloured by one of :data:`KINDS`."""
    check = values.check
    mpp = np.array(check.prediction.tiles.slide_mpp)
    across = check.section.spot_diameter_um / np.mean(check.section.slide.mpp) * np.mean(mpp)
    settings = {
        "name": _title(values, kind),
        "features": values.features(),
        "size": across,
        "symbol": "disc",
        "face_color": kind,
        "face_colormap": _diverging() if kind == DIFFERENCE else COLORMAP,
        "face_contrast_limits": values.difference_limits() if kind == DIFFERENCE else values.limits(),
        "border_color": PLAIN,
        "border_width": _BORDER[False],
        "border_width_is_relative": True,
        "shown": np.isfinite(getattr(values, kind)),
        "units": UM,
        "metadata": {KEY: {"spots": kind, "of": check}},
    }
    return (check.centre_yx - 0.5) * mpp, settings, "points"


def show_values(layer: Any, values: Values) -> None:
    """Show another gene of the same check in a layer of spots, in place; limits are set by themselves."""
    kind = kind_of(layer)
    assert kind is not None
    layer.features = values.features()
    shown = np.isfinite(getattr(values, kind))
    if (layer.shown != shown).any():
        layer.shown = shown
    layer.metadata[KEY]["of"] = values.check
    layer.name = _title(values, kind)


def set_limits(layer: Any, limits: Limits) -> None:
    """Spread a layer's colours between two values."""
    low, high = limits
    if high > low and tuple(map(float, layer.face_contrast_limits)) != (low, high):
        layer.face_contrast_limits = (low, high)


def follow_limits(layer: Any, slot: Any) -> None:
    """Have a slot called when somebody else spreads a layer's colours; napari tells this in no public place."""
    events = getattr(getattr(layer, "_face", None), "events", None)
    if events is not None:
        events.contrast_limits.connect(slot)


def show_bar(layer: Any) -> None:
    """Show a layer's colour bar, titled by its name: what, gene and unit; once, for a person may take it away."""
    if layer.metadata[KEY].setdefault("bar", False):
        return
    layer.metadata[KEY]["bar"] = True
    layer.face_colorbar.size = BAR_SIZE
    layer.face_colorbar.visible = True
    layer.name_overlay.position = "top_left"  # another corner than the bar's: napari's grid would let them collide
    layer.name_overlay.visible = True


def write_name(layer: Any, *, small: bool) -> None:
    """Write what a layer shows, small where it has a quarter of the canvas."""
    layer.name_overlay.font_size = _NAME_SIZE[small]


def mark(layer: Any, rows: set[int]) -> None:
    """Make some spots stand out."""
    chosen = np.zeros(len(layer.data), bool)
    chosen[list(rows)] = True
    colours = np.where(chosen[:, None], _rgba(SELECTED), _rgba(PLAIN))
    layer.border_color = colours
    layer.border_width = np.where(chosen, _BORDER[True], _BORDER[False])
    if set(layer.selected_data) != rows:
        layer.selected_data = rows


def kind_of(layer: Any) -> str | None:
    """Return which of :data:`KINDS` a layer shows, or None."""
    found: str | None = _ours(layer).get("spots")
    return found


def is_of(layer: Any, check: Check | None) -> bool:
    """Whether a layer shows spots or places of a check."""
    return check is not None and _ours(layer).get("of") is check


def is_places(layer: Any) -> bool:
    """Whether a layer outlines places."""
    return bool(_ours(layer).get("places"))


def is_any(layer: Any) -> bool:
    """Whether a layer shows spots or places of any check."""
    return kind_of(layer) is not None or is_places(layer)


def is_drawn_in(layer: Any) -> bool:
    """Whether a person is drawing in a layer: it is not to be taken from under their hand."""
    return str(getattr(layer, "mode", "")).startswith("add")


def places_layer(check: Check, gene: str, places: Sequence[Place]) -> LayerTuple:
    """Return places where errors lie together as outlines in the colours of the difference."""
    import pandas as pd
    import shapely

    mpp = np.array(check.prediction.tiles.slide_mpp)
    data, rows = [], []
    for place in places:
        for part in shapely.get_parts(place.polygon):
            data.append((np.asarray(part.exterior.coords)[:-1, ::-1] - 0.5) * mpp)
            rows.append((place.kind, len(place.rows), round(place.residual, 3), f"{place.residual:+.2g}"))
    colours = [MORE if r[2] > 0 else LESS for r in rows]
    settings = {
        "name": f"errors of {gene} that lie together",
        "shape_type": "polygon",
        "features": pd.DataFrame(rows, columns=["measured is", "spots", "mean difference", "label"]),
        "face_color": "transparent",
        "edge_color": colours,
        "edge_width": 0.3 * check.section.spot_diameter_um,
        "units": UM,
        "metadata": {KEY: {"places": True, "of": check}},
    }
    return data, settings, "shapes"


def _title(values: Values, kind: str) -> str:
    return f"{kind} {values.gene} ({values.check.unit})"


def _rgba(colour: str) -> npt.NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] + [1.0])


@cache
def _diverging() -> Any:
    import cmap

    return cmap.Colormap(DIVERGING).to_napari()


def _ours(layer: Any) -> dict[str, Any]:
    entry = layer.metadata.get(KEY) if layer is not None else None
    return entry if isinstance(entry, dict) else {}
