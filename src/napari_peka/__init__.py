"""Where each gene is expressed on an H&E slide, and how far to believe it.

The public face; every name is imported when it is first used, so that ``import napari_peka`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_peka.config import PredictConfig
    from napari_peka.core.errors import PekaError
    from napari_peka.infer.tissue import find_tissue
    from napari_peka.io.figure import write_map
    from napari_peka.io.regions import read_regions
    from napari_peka.io.sample import sample_slide
    from napari_peka.io.slide import Slide, open_slide
    from napari_peka.io.store import Prediction, read_prediction
    from napari_peka.models.zoo import load_model
    from napari_peka.workflows import load_forward, plan_tiles, predict

_FACE = {
    "PekaError": "core.errors",
    "PredictConfig": "config",
    "Prediction": "io.store",
    "Slide": "io.slide",
    "find_tissue": "infer.tissue",
    "load_forward": "workflows",
    "load_model": "models.zoo",
    "open_slide": "io.slide",
    "plan_tiles": "workflows",
    "predict": "workflows",
    "read_prediction": "io.store",
    "read_regions": "io.regions",
    "sample_slide": "io.sample",
    "write_map": "io.figure",
}

__all__ = [
    "PekaError", "PredictConfig", "Prediction", "Slide", "find_tissue", "load_forward", "load_model", "open_slide",
    "plan_tiles", "predict", "read_prediction", "read_regions", "sample_slide", "write_map",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-peka")
    if name in _FACE:
        return getattr(import_module(f"napari_peka.{_FACE[name]}"), name)
    raise AttributeError(f"module 'napari_peka' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE, "__version__"])
