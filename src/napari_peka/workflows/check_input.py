"""What a check begins with: whether map and section belong together, and what the map's head reads at the spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import PekaError, SectionError
from napari_peka.core.interpolation import interpolate
from napari_peka.io.prediction import Prediction
from napari_peka.workflows.spots import related

if TYPE_CHECKING:
    from napari_peka.io.section import Section

Float32 = npt.NDArray[np.float32]
#: share by which the map's and the section's µm per pixel may differ without a word
_MPP_SLACK = 0.05


def same_slide(prediction: Prediction, section: Section) -> None:
    """Refuse a section whose image is not the very file that a map was predicted on.

    Raises
    ------
    SectionError
        If it is another one.
    """
    slide = prediction.record.get("slide", {})
    if slide.get("fingerprint") != section.slide.fingerprint:
        raise SectionError(
            f"{section.section_id} was measured on {section.slide.path.name}, and the map was predicted on "
            f"{slide.get('file') or slide.get('name') or 'another slide'}, which is another file: predict on the "
            "section's own image, or open the section with the map's slide as its image, if positions are given in "
            "its pixels"
        )


def at_spots(prediction: Prediction, at_yx: npt.NDArray[np.float64]) -> tuple[Float32, Float32]:
    """Return what the head reads, and by how much intervals are wider, both interpolated; NaN outside the map.

    The head is linear, so its values are then interpolated too.
    """
    tiles, embeddings = prediction.tiles, prediction.embeddings
    known = prediction.read_ok & np.isfinite(embeddings[:, 0])
    weights = interpolate(tiles, at_yx, known)
    used = np.unique(weights.indices)
    out = np.full((len(at_yx), prediction.head.n_dims), np.nan, np.float32)
    spread = np.full(len(at_yx), np.nan, np.float32)
    if not len(used):
        return out, spread
    features = np.asarray(embeddings[used], np.float32)
    if (near := prediction.neighbours) is not None:
        around = near.touched(used)
        context = near.among(around).mean(np.asarray(embeddings[around], np.float32))
        features = np.concatenate([features, context[np.searchsorted(around, used)]], 1)
    some = np.diff(weights.indptr) > 0
    out[some] = (weights[:, used] @ features)[some]
    spread[some] = (weights[:, used] @ prediction.spread_of(used))[some]
    return out, spread


def relation_of(prediction: Prediction, section: Section) -> tuple[str, list[str]]:
    """Return in words how the map's model relates to a section, and what must be said loudly."""
    trained = prediction.record.get("model", {}).get("trained_on")
    if trained is None:  # a map of before that was written down
        trained = _trained_of_known_model(prediction)
    return related([t for t in trained or [] if t.get("part", "train") == "train"], [section])


def _trained_of_known_model(prediction: Prediction) -> Sequence[Mapping[str, Any]] | None:
    """Return what a model that lies on this machine was trained on, if it is the map's; nothing is downloaded."""
    from napari_peka.models.zoo import DEMO, load_model, local_models

    told = prediction.record.get("model", {})
    try:
        for name in (DEMO, *local_models()):
            if name == told.get("name") and (model := load_model(name)).digest == told.get("digest"):
                return model.trained_on
    except PekaError:  # a broken bundle among others: not told
        return None
    return None


def mpp_warning(prediction: Prediction, section: Section) -> list[str]:
    ours, theirs = np.mean(prediction.tiles.slide_mpp), np.mean(section.slide.mpp)
    if abs(ours / theirs - 1) <= _MPP_SLACK:
        return []
    return [
        f"the map was made at {ours:.4g} µm per pixel of this slide, the section says {theirs:.4g}: one of them is "
        "wrong, and if it is the map's, its values mean little"
    ]
