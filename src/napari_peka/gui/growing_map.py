"""A map that fills in while its job runs: blocks come from the job's thread, layers are touched in the window's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from napari_peka.gui import doubt_layers, doubt_view, layers, map_layers
from napari_peka.gui.partial import say_partial

#: seconds between two paintings of what is new, after the first: without a GPU a painting takes as long as some tiles
EVERY_S = 1.0


class GrowingMap:
    """Shows one prediction as it grows. There is no Qt in here.

    Parameters
    ----------
    viewer
        The viewer.
    slide_layer
        The layer of the slide that is predicted on.
    output
        Where the result goes.
    shapes
        The layer of the region, which must follow when the slide's resolution becomes known; or None.
    """

    def __init__(self, viewer: Any, slide_layer: Any, output: Path, shapes: Any = None) -> None:
        self.viewer, self.slide_layer, self.output, self.shapes = viewer, slide_layer, output, shapes
        self.layer: Any = None
        self.schedule: Any = None
        self._view = layers.visible_rect(viewer, slide_layer)
        #: what the job tells, waiting for the window's thread
        self._news: deque[Callable[[], bool]] = deque()
        self._blocks: deque[Any] = deque()
        self._next_fill = 0.0

    # -- in the job's thread -------------------------------------------------------------------------------------

    def on_open(self, slide: Any) -> None:
        """Hear of a slide that was opened for the job."""
        self._news.append(lambda: self._adopt(slide))

    def on_start(self, prediction: Any, schedule: Any) -> None:
        """Hear of the growing prediction; what is looked at comes first from the first block on."""
        schedule.prefer(self._view)
        self._news.append(lambda: self._begin(prediction, schedule))

    def on_block(self, block: Any, *_: Any) -> None:
        """Hear of a block that is finished, or of which more is done."""
        self._blocks.append(block)

    # -- in the window's thread ----------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Show what came; returns whether the slide's resolution became known."""
        adopted = False
        while self._news:
            adopted |= self._news.popleft()()
        now = monotonic()
        if self.layer is not None and self._blocks and now >= self._next_fill and self.layer in self.viewer.layers:
            self._next_fill = now + EVERY_S
            self._fill()
        if self.schedule is not None and self.slide_layer in self.viewer.layers:
            self.schedule.prefer(layers.visible_rect(self.viewer, self.slide_layer))
        return adopted

    def end(self) -> None:
        """Show what is left; let the layer's name say so where the map stays partial."""
        if self.layer is not None and self.layer in self.viewer.layers:
            self._fill()
            say_partial(self.layer)

    def _fill(self) -> None:
        map_layers.fill_blocks(self.layer, [self._blocks.popleft() for _ in range(len(self._blocks))])
        doubt_view.show_doubts(self.viewer, self.layer)  # hatching comes with the first tile that needs it

    def _adopt(self, slide: Any) -> bool:
        """Bring the slide's layer to the resolution that is now known, and with it the region drawn on it."""
        before = np.array(self.slide_layer.scale, float)[:2]
        layers.set_resolution(self.slide_layer, slide)
        factor = np.array(self.slide_layer.scale, float)[:2] / before
        if self.shapes is not None:
            layers.rescale(self.shapes, factor)
        layers.keep_view(self.viewer, factor)
        return True

    def _begin(self, prediction: Any, schedule: Any) -> bool:
        self.layer = show_map(self.viewer, prediction, self.output, self.slide_layer)
        self.schedule = schedule
        return False


def show_map(viewer: Any, prediction: Any, output: Path, slide_layer: Any = None) -> Any:
    """Show a map, in place of an older one of the same file, whose gene and doubts it keeps; returns its layer."""
    asked, doubts = None, None
    for old in [x for x in viewer.layers if layers.output_of(x) == output]:
        asked, doubts = layers.gene_of(old) or asked, doubt_layers.doubts_of(old)
        doubt_view.leave(viewer, old)
        viewer.layers.remove(old)
    data, settings, _ = map_layers.heatmap_layer(prediction, map_layers.best_gene(prediction, asked=asked))
    layer = viewer.add_image(data, **settings)
    layers.below_shapes(viewer, layer)
    layers.set_output(layer, output)
    map_layers.show_colour_bar(layer)
    doubt_view.show_doubts(viewer, layer, doubts)
    # shapes drawn next take the scale of the selected layer: the slide's, not that of the map's coarse pixels
    if slide_layer is not None and slide_layer in viewer.layers:
        viewer.layers.selection.active = slide_layer
    return layer
