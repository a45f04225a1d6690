"""The doubt of a map in the viewer: which of its layers are there, where, and when they are seen. No Qt in here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from napari.layers import Image

from napari_peka.gui import doubt_layers, layers, map_layers
from napari_peka.gui.doubt_layers import FADED, HATCHED, KINDS, MAP, NUMBER, Doubts


def show_doubts(viewer: Any, layer: Any, doubts: Doubts | None = None) -> None:
    """Show the doubt of a map as is wished, and bring it to what the map shows now; nothing happens twice.

    Parameters
    ----------
    viewer
        The viewer.
    layer
        The map's layer.
    doubts
        How it is to be shown; None: as before.
    """
    if layers.prediction_of(layer) is None:
        return
    adopt(viewer, layer)
    entry = layer.metadata[layers.KEY]
    other = doubts is not None and doubts.shown != doubt_layers.doubts_of(layer).shown
    entry["doubts"] = doubts or doubt_layers.doubts_of(layer)
    own, wanted = doubt_layers.own_layers(layer), doubt_layers.wanted(layer)
    for kind in [k for k in own if k not in wanted]:
        _take_away(viewer, layer, kind)
    if other and NUMBER in own:
        doubt_layers.refresh(layer, (NUMBER,))
    for kind in [k for k in wanted if k not in own]:
        _add(viewer, layer, kind)


def leave(viewer: Any, layer: Any) -> None:
    """Take a map's doubt out of the viewer, before the map goes."""
    adopt(viewer, layer)
    for kind in list(doubt_layers.own_layers(layer)):
        _take_away(viewer, layer, kind)


def left_alone(viewer: Any) -> list[Any]:
    """Return layers of doubt whose map is gone."""
    maps = [layers.prediction_of(x) for x in viewer.layers]
    return [x for x in viewer.layers if doubt_layers.is_doubt(x) and not any(_of(x) is p for p in maps)]


def taken_away(layer: Any, gone: Any) -> bool:
    """Heed that a person took a layer of a map's doubt away: it is then not wished; returns whether it was one."""
    own = doubt_layers.own_layers(layer)
    kind = next((k for k, x in own.items() if x is gone), None)
    if kind is None:
        return False
    off = {FADED: {"fade": False}, NUMBER: {"shown": MAP}, HATCHED: {"hatch": False}}[kind]
    layer.metadata[layers.KEY]["doubts"] = replace(doubt_layers.doubts_of(layer), **off)  # type: ignore[arg-type]
    del own[kind]
    _without(layer, kind, gone)
    return True


def hatch_above(viewer: Any, layer: Any) -> None:
    """Let a map's hatching be seen while another picture lies in the map's place."""
    hatched = doubt_layers.own_layers(layer).get(HATCHED)
    if hatched is not None and hatched in viewer.layers:
        hatched.visible = True
        viewer.layers.move(viewer.layers.index(hatched), len(viewer.layers))
        layers.below_shapes(viewer, hatched)


def _of(layer: Any) -> Any:
    return layers.kept(layer).get("doubt_of")


def adopt(viewer: Any, layer: Any) -> None:
    """Take layers that a reader made with a map for the map's own, and let all of them follow it."""
    prediction = layers.prediction_of(layer)
    if prediction is None:
        return
    events = layer.events  # a second connection is the first one
    for event in (events.contrast_limits, events.colormap, events.gamma):
        event.connect(_recolour)
    events.visible.connect(_visible_changed)
    events.opacity.connect(_opacity_changed)
    entry = layer.metadata[layers.KEY]
    owned = [x for each in viewer.layers for x in doubt_layers.own_layers(each).values()]
    for x in viewer.layers:
        if _of(x) is prediction and not any(x is o for o in owned):
            entry["doubt_layers"] = doubt_layers.own_layers(layer) | {layers.kept(x)["doubt"]: x}


def _add(viewer: Any, layer: Any, kind: str) -> None:
    data, settings, _ = doubt_layers.made(layer, kind)
    new, own = Image(data, **settings), doubt_layers.own_layers(layer)  # whole before it is added
    chosen = viewer.layers.selection.active
    below = [layer, *(own[k] for k in KINDS[: KINDS.index(kind)] if k in own)]
    at = max(viewer.layers.index(x) for x in below if x in viewer.layers) + 1
    if kind == FADED:
        new.visible = layer.visible
        layer.opacity = 0  # its colour bar stays
    elif kind == HATCHED:
        new.visible = layer.visible or NUMBER in own
    layer.metadata[layers.KEY]["doubt_layers"] = own | {kind: new}
    viewer.layers.insert(at, new)
    if kind == NUMBER:
        map_layers.show_colour_bar(new)
        layer.visible = False
    viewer.layers.selection.active = chosen


def _take_away(viewer: Any, layer: Any, kind: str) -> None:
    old = doubt_layers.own_layers(layer).pop(kind)
    if old in viewer.layers:
        viewer.layers.remove(old)
    _without(layer, kind, old)


def _without(layer: Any, kind: str, old: Any) -> None:
    """Show the map again as it was."""
    if kind == FADED:
        layer.opacity = old.opacity
    elif kind == NUMBER:
        layer.visible = True


# -- the map changes: plain functions, which hold no layer alive --------------------------------------------------


def _recolour(event: Any) -> None:
    doubt_layers.recolour(event.source)


def _visible_changed(event: Any) -> None:
    own = doubt_layers.own_layers(event.source)
    seen = event.source.visible
    if FADED in own:
        own[FADED].visible = seen
    if HATCHED in own:
        own[HATCHED].visible = seen or (NUMBER in own and own[NUMBER].visible)


def _opacity_changed(event: Any) -> None:
    """Hand what napari's own slider says to the picture that lies in the map's place."""
    layer, faded = event.source, doubt_layers.own_layers(event.source).get(FADED)
    if faded is not None and faded.visible and layer.opacity > 0:
        faded.opacity = layer.opacity
        layer.opacity = 0
