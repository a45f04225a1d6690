"""A torch without CUDA beside a torchvision with CUDA: make timm importable all the same.

torchvision's binary then cannot load, its operators are missing, and its first import fails. timm and peft need no
operator of it, only that the import succeeds; two declared schemas are enough.
"""

from __future__ import annotations

import sys

SYMPTOM = "operator torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[object] = []  # a torch Library takes its declarations with it when it is collected


def ensure_torchvision() -> bool:
    """Import torchvision; declare the missing schemas only after a first import failed with exactly that error.

    Returns
    -------
    bool
        Whether the schemas had to be declared.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as e:
        if str(e) != SYMPTOM:
            raise
        _declare()
        return True
    return bool(_kept)


def _declare() -> None:
    import torch

    for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[module]
    if not _kept:
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        _kept.append(library)
    import torchvision  # noqa: F401
