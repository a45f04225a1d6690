#!/usr/bin/env python3
"""How soon a map is seen in the window, and what the window costs a prediction.

    xvfb-run -a -s "-screen 0 1280x1024x24" python benchmarks/first_heat.py SLIDE [--mpp F] [--mosaic 2] [--json]

With the encoder loaded and tissue found, as after *Measure* in the dock: seconds from *Predict* until the first tiles
are painted (``first_heat_s``; the goal is 2), and the speed of the whole map in the window over that of the same
prediction without one (``ratio_window``; the goal is 0.98), in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, sleep

os.environ["NAPARI_PEKA_REUSE"] = "0"

import numpy as np
from pipeline import write_mosaic


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if args.mosaic > 1:
            args.slide = write_mosaic(args.slide, args.mpp, args.mosaic, Path(scratch))
        told = measure(args, Path(scratch))
    print(json.dumps(told, indent=1) if args.json else "\n".join(f"{k:24} {v}" for k, v in told.items()))


def measure(args: argparse.Namespace, scratch: Path) -> dict:
    import napari
    from qtpy.QtWidgets import QApplication

    import napari_peka as peka
    from napari_peka.gui.predict_widget import PredictWidget

    viewer = napari.Viewer(show=True)
    dock = PredictWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Predict expression")
    dock.open_slide(args.slide)
    app = QApplication.instance()
    until(app, lambda: dock.slide.layer() is not None)
    if args.mpp and args.mosaic == 1:
        dock.mpp.setValue(args.mpp)
    model = peka.load_model("demo")
    heats, within, without, tiles = [], [], [], 0
    for turn in range(args.rounds):
        dock.output.edit.setText(str(scratch / f"window-{turn}"))
        until(app, lambda: not isinstance(dock.wish(), str))
        wish = dock.wish()
        config = wish.config(model)
        forward = dock.memory.forward(model, config)
        with peka.open_slide(args.slide, mpp=wish.mpp) as slide:
            tissue = dock.memory.tissue(slide, config)
            blocks = peka.plan_tiles(slide, model, config, tissue=tissue).blocks()
            forward(np.zeros((len(blocks[0]), *[model.tile_spec().size_px] * 2, 3), np.uint8))  # allocates
        began = perf_counter()
        dock.run()
        until(app, lambda: shown(dock))
        viewer.window.screenshot(canvas_only=True, flash=False)  # is painted when it returns
        heats.append(perf_counter() - began)
        until(app, lambda: not dock.panel.running)
        if dock.panel.error.isVisible():
            raise SystemExit(dock.panel.error.text())
        within.append(done(dock.growing.layer)["tiles_per_second"])
        forward = peka.load_forward(model, config)
        _ = forward.module
        with peka.open_slide(args.slide, mpp=wish.mpp) as slide:
            alone = peka.predict(
                slide, model, output=scratch / f"alone-{turn}.peka.zarr", tissue=tissue, config=config, forward=forward
            )
        without.append(alone.record["run"]["tiles_per_second"])
        tiles = len(alone.tiles)
    viewer.close()
    return {
        "slide": args.slide.name,
        "tiles": tiles,
        "first_heat_s": round(statistics.median(heats), 2),
        "ratio_window": round(statistics.median(a / b for a, b in zip(within, without)), 3),
        "rounds": {"first_heat_s": [round(h, 2) for h in heats], "window": within, "without": without},
    }


def shown(dock) -> bool:
    layer = None if dock.growing is None else dock.growing.layer
    return layer is not None and bool(np.isfinite(layer.data).any())


def done(layer) -> dict:
    from napari_peka.gui.layers import prediction_of

    return prediction_of(layer).record["run"]


def until(app, condition, patience_s: float = 3600.0) -> None:
    """Let the window live until something is so."""
    began = perf_counter()
    while not condition():
        app.processEvents()
        sleep(0.005)  # a window that has nothing to do waits too
        if perf_counter() - began > patience_s:
            raise SystemExit("nothing came of it")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--mosaic", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
