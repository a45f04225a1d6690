#!/usr/bin/env python3
"""Take the documentation's pictures of the docks, with a mouse's clicks and nothing staged but two regions.

    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/make_screenshots.py [SLIDE] [--mpp F] [-o docs/img]

By default of the embedded slide. A slide that the demo model was fitted on is refused.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import napari
import numpy as np
import shapely
from PIL import Image
from qtpy.QtWidgets import QApplication

import napari_peka as peka
from napari_peka.gui import layers
from napari_peka.io.regions import write_regions

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
    with tempfile.TemporaryDirectory() as folder:  # regions are kept beside the slide, which is not ours
        copy = Path(shutil.copy(args.slide, Path(folder) / f"case{args.slide.suffix}"))
        tell(viewer, copy, slide, args)
    viewer.close()


def tell(viewer: napari.Viewer, path: Path, slide: peka.Slide, args: argparse.Namespace) -> None:
    """Walk through the docks."""
    write_regions(path.with_name("case.regions.geojson"), parts(slide))
    window, first = viewer.window.add_plugin_dock_widget("napari-peka", "Slide")
    first.open_slide(path)
    if args.mpp:
        first.mpp.setValue(args.mpp)
        first.set_button.click()
    first.tissue.click()
    wait(lambda: any(x.name.startswith("tissue") for x in viewer.layers))
    viewer.reset_view()
    shoot(viewer, args.output / "slide.png")
    first.tissue.click()
    regions = next(x for x in viewer.layers if x.name.startswith("regions"))
    regions.visible = False
    viewer.window.remove_dock_widget(window)
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
    regions.visible = True
    explore.region_fold.toggleButton().click()
    explore.regions.shapes.choose(regions)
    wait(lambda: explore.regions.table.rowCount() == 2)
    explore.regions.second.setCurrentIndex(2)
    explore.regions.rank_button.click()
    wait(lambda: bool(explore.regions.order.text()))
    shoot(viewer, args.output / "regions.png")


def parts(slide: peka.Slide) -> dict[str, shapely.Polygon]:
    """Return two regions by where they lie on the slide: in the middle, and left of it."""
    h, w = slide.shape
    middle = [(0.52, 0.39), (0.79, 0.34), (0.81, 0.54), (0.58, 0.64)]
    left = [(0.41, 0.34), (0.51, 0.32), (0.51, 0.78), (0.36, 0.81)]
    return {n: shapely.Polygon([(x * w, y * h) for x, y in c]) for n, c in (("middle", middle), ("left", left))}


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
