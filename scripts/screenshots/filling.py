"""The map as it fills in over the slide, as an animated picture."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import numpy as np
from PIL import Image
from qtpy.QtWidgets import QDockWidget

import hands
from screenshots.cases import Case
from screenshots.stage import Stage, palette_of, share_done
from screenshots.stories import predicting

SIZE = (1150, 690)
FRAMES, WIDTH = 40, 700
#: ms that a frame is shown, and the last one
FRAME_MS, LAST_MS = 120, 2500
MAX_BYTES = 1_500_000


def filling(stage: Stage, case: Case, work: Path) -> None:
    """Take a frame whenever another part of the map is there; the last one is the whole map."""
    frames: list[Image.Image] = []
    for title in ("layer controls", "layer list"):  # napari's own docks: a small picture has no room for them
        stage.viewer.window._qt_window.findChild(QDockWidget, title).hide()
    stage.size = SIZE
    with predicting(stage, case, work, case.map.tissue) as dock:
        start = monotonic()
        for k in range(FRAMES):
            hands.wait(lambda k=k: not share_done(dock) < k / FRAMES)
            frames.append(small(stage.grab()))
        hands.wait(lambda: np.isnan(share_done(dock)))
        took = monotonic() - start
    frames.append(small(stage.grab()))
    path = stage.output / "filling.gif"
    for colours in (128, 96, 64, 48):
        save(frames, path, colours)
        if path.stat().st_size < MAX_BYTES:
            break
    speed = took / (FRAMES * FRAME_MS / 1000)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {frames[0].size}; {took:.0f} s, {speed:.0f} times as fast")


def small(picture: Image.Image) -> Image.Image:
    """Return a picture as wide as the documentation shows it."""
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)


def save(frames: list[Image.Image], path: Path, colours: int) -> None:
    """Write frames that share their colours, so that what stays the same costs nothing."""
    ends = Image.new("RGB", (WIDTH, 2 * frames[0].height))
    ends.paste(frames[0], (0, 0))
    ends.paste(frames[-1], (0, frames[0].height))
    palette = palette_of(ends, colours)
    first, *others = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    times = [FRAME_MS] * len(others) + [LAST_MS]
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)
