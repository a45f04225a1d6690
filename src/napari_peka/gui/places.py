"""Where things of a slide are kept. There is no Qt in here."""

from __future__ import annotations

import os
from pathlib import Path

from napari_peka.io.sample import ASSETS


def default_folder(slide: Path) -> tuple[Path, str]:
    """Return where a slide's result goes by default, and what to say about it.

    Beside the slide; in the person's own folder when that cannot be written or is part of this package.
    """
    own = Path.home() / "napari-peka"
    if ASSETS in slide.resolve().parents:
        return own, ""
    if not os.access(slide.parent, os.W_OK):
        return own, f"You may not write beside the slide ({slide.parent}); the result goes to this folder."
    return slide.parent, ""


def regions_path(slide: Path) -> Path:
    """Return where a slide's regions are kept: beside it, or in the person's own folder where one may not write."""
    folder, _ = default_folder(slide)
    return folder / f"{slide.stem}.regions.geojson"
