"""Data to start with: the embedded slide."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"


def sample_slide() -> Path:
    """Return the path of the embedded H&E slide.

    A real Aperio SVS, 2220 × 2967 px at 0.499 µm/px: CMU-1-Small-Region of the OpenSlide test data (CC0).
    """
    return ASSETS / "cmu_small_region.svs"
