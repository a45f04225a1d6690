"""What a person waits for in the window: another gene, a map that grows, a large slide, a session.

    xvfb-run -a -s "-screen 0 1280x1024x24" python benchmarks/window.py [--slide LARGE.tif]

Each row is the median of several, in ms: numbers into the layer, and the whole until the canvas is painted. Software
OpenGL under Xvfb paints slowly; the first is what changes with this package.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

GENES, DIMS = 2_000, 384


def prediction_of(n: int):
    """Return a map of about `n` tiles with random embeddings, as a run would leave it."""
    from napari_peka.core.geometry import TileSpec, TileTable
    from napari_peka.core.head import GeneHead
    from napari_peka.io.prediction import Prediction

    rng = np.random.default_rng(0)
    side = round(n**0.5)
    tiles = TileTable.grid((side * 224, side * 224), (0.5, 0.5), TileSpec(224, 0.5))
    head = GeneHead(
        rng.normal(size=(DIMS, GENES)).astype(np.float32) / DIMS**0.5, np.zeros(GENES, np.float32),
        tuple(f"GENE{i}" for i in range(GENES)), "log1p CP10K", (), rng.uniform(0, 0.7, GENES).astype(np.float32),
    )  # fmt: skip
    embeddings = rng.normal(size=(len(tiles), DIMS)).astype(np.float16)
    record = {"slide": {"fingerprint": "", "name": "none", "shape": [side * 224, side * 224]}}
    return Prediction(tiles, embeddings, head, np.ones(len(tiles), bool), record)


def median_ms(work: Callable[[int], None], repeats: int = 9) -> float:
    """Return the median time of a call; the first one is not counted."""
    work(0)
    took = []
    for i in range(1, repeats + 1):
        t = time.perf_counter()
        work(i)
        took.append(time.perf_counter() - t)
    return 1000 * statistics.median(took)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, help="a large slide, such as large_slide.py writes")
    parser.add_argument("--tiles", type=int, nargs="*", default=[5_000, 50_000, 500_000])
    given = parser.parse_args()
    import napari
    from qtpy.QtWidgets import QApplication

    from napari_peka.gui import layers, map_layers, reader
    from napari_peka.gui.explore_widget import ExploreWidget
    from napari_peka.gui.session import session_of
    from napari_peka.gui.session_file import read_session, save_session, show_session
    from napari_peka.io.sample import sample_slide
    from napari_peka.io.slide import open_slide

    viewer = napari.Viewer()

    def paint() -> None:
        viewer.window._qt_viewer.canvas.native.update()
        QApplication.processEvents()

    dock = ExploreWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Explore expression")
    paint()
    for n in given.tiles:
        prediction = prediction_of(n)
        data, settings, _ = map_layers.heatmap_layer(prediction, "GENE0")
        heat = viewer.add_image(data, **settings)
        dock.map.choose(heat)
        paint()
        genes = [f"GENE{i}" for i in range(1, 20)]
        own = median_ms(lambda i: map_layers.update_heatmap(heat, prediction, genes[i]))  # noqa: B023

        def switch(i: int) -> None:
            dock.pick(genes[i])  # noqa: B023
            paint()

        whole = median_ms(switch)
        print(f"another gene, {len(prediction.tiles):>7,} tiles: {own:7.1f} ours, {whole:7.1f} with the dock, painted")
        blocks = list(prediction.tiles.blocks())
        size = blocks[0].stop - blocks[0].start
        own = median_ms(lambda i: map_layers.fill_blocks(heat, [blocks[i]]))  # noqa: B023
        print(f"a finished block of {size}, {len(prediction.tiles):>7,} tiles: {own:7.1f} ours")
        search = median_ms(lambda i: dock.genes.search("GENE1"[: 1 + i % 5]))
        dock.genes.search("")
        print(f"a letter in the search, {GENES:,} genes: {search:7.1f} ours")
        viewer.layers.clear()
    if given.slide:

        def open_large(_: int) -> None:
            viewer.layers.clear()
            data, settings, _kind = layers.slide_layer(open_slide(given.slide))
            viewer.add_image(data, **settings)
            paint()

        print(f"opening {given.slide.name}: {median_ms(open_large, 5):7.1f} painted")
        viewer.layers.clear()
    with tempfile.TemporaryDirectory() as folder:
        import napari_peka as peka

        path = Path(folder) / "s.peka.zarr"
        with open_slide(sample_slide()) as slide:
            peka.predict(slide, peka.load_model("demo"), output=path)
        for data, settings, _ in [*reader.sample_slide_data(), *reader.read_layers(str(path))]:
            viewer.add_image(data, **settings)
        save_session(session_of(viewer), Path(folder) / "s")

        def restore(_: int) -> None:
            viewer.layers.clear()
            show_session(session_of(viewer), read_session(Path(folder) / "s.peka.json"))
            paint()

        read = median_ms(lambda _: read_session(Path(folder) / "s.peka.json"), 5)
        print(
            f"a session of a slide and a map: {median_ms(restore, 5):7.1f} painted, of it {read:7.1f} beside the window"
        )
    viewer.close()


if __name__ == "__main__":
    main()
