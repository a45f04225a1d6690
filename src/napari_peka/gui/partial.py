"""A map that is not complete says so in its layer's name, whatever gene it shows. There is no Qt in here."""

from __future__ import annotations

import re
from typing import Any

from napari_peka.gui import layers

#: what is added to the name, and the number by which napari tells layers of one name apart
_ADDED = re.compile(r"( \(partial, \d+ %\))?( \[\d+\])?$")


def say_partial(layer: Any) -> None:
    """Let a layer's name say how much of its map is there, until it shows a complete one."""
    layer.events.name.connect(_named)  # a plain function: it holds no layer alive
    _say(layer)


def percent_done(prediction: Any) -> int:
    """Return how much of a map is there, in whole percent; only a complete one has 100."""
    return min(99, int(100 * prediction.n_done / max(1, len(prediction.tiles)))) if prediction.partial else 100


def _named(event: Any) -> None:
    _say(event.source)


def _say(layer: Any) -> None:
    prediction = layers.prediction_of(layer)
    name = str(layer.name)
    bare = _ADDED.sub("", name, count=1)
    told = f"{bare} (partial, {percent_done(prediction)} %)" if prediction is not None and prediction.partial else bare
    if not re.fullmatch(re.escape(told) + r"( \[\d+\])?", name):
        layer.name = told
