#!/usr/bin/env python3
"""Take the documentation's pictures of both docks, with a mouse's clicks and nothing staged.

    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/make_screenshots.py [SLIDE] [--mpp F] [-o docs/img]

By default of the embedded slide. A slide that the demo model was fitted on is refused.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication

import napari_peka as peka
from napari_peka.gui import layers

SIZE = (1400, 900)
#: share of the map that is there when the first picture is taken
PART = 0.35


def main() -> None:
    args = arguments()
    slide = peka.open_slide(args.slide, mpp=args.mpp)
    if slide.fingerprint in {s["slide"] for s in peka.load_model("demo").trained_on}:
        raise SystemExit(f"{slide.name} was used to fit the model")
    viewer = napari.Viewer(title="napari")
    viewer.window.resize(*SIZE)
    data, settings, _ = layers.slide_layer(slide)
    viewer.add_image(data, **settings)
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.reset_view()
    _, predict = viewer.window.add_plugin_dock_widget("napari-peka", "Predict expression")
    with tempfile.TemporaryDirectory() as folder:
        predict.output.edit.setText(folder)
        predict.detail.setCurrentIndex(predict.detail.count() - 1)
        predict.panel.run_button.click()
        wait(lambda: predict._map is not None and filled(predict._map) > PART)
        zoom(viewer, predict._map)
        # the folder of this run is nobody's business
        predict.output.edit.setText("slides")
        shoot(viewer, args.output / "predict.png")
        wait(lambda: not predict.panel.running)
    _, explore = viewer.window.add_plugin_dock_widget("napari-peka", "Explore expression", tabify=True)
    explore.pick(args.gene)
    shoot(viewer, args.output / "explore.png")
    viewer.close()


def zoom(viewer: napari.Viewer, layer: object) -> None:
    """Look at a layer, with some room around it."""
    low, high = layer.extent.world
    viewer.camera.center = tuple((low + high) / 2)
    viewer.camera.zoom = 0.85 * min(np.array(viewer.canvas.size) / (high - low))


def filled(layer: object) -> float:
    prediction = layers.prediction_of(layer)
    assert prediction is not None
    return float(np.isfinite(prediction.embeddings[:, 0]).mean())


def wait(condition: Callable[[], bool], limit_s: float = 1800) -> None:
    end = monotonic() + limit_s
    while not condition():
        if monotonic() > end:
            raise SystemExit("it took too long")
        QApplication.processEvents()


def shoot(viewer: napari.Viewer, path: Path) -> None:
    end = monotonic() + 2
    wait(lambda: monotonic() > end)
    shot = viewer.screenshot(canvas_only=False, flash=False)
    # 256 colours: a third of the bytes, and no eye sees it
    Image.fromarray(shot[..., :3]).quantize(256).save(path, optimize=True)
    print(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?", default=peka.sample_slide())
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--gene", default="ERBB2")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/img"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
