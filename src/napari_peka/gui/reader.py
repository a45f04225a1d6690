"""The reader of slides, maps and sessions, and the sample data: what the manifest names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_peka.core.errors import PekaError, SettingError
from napari_peka.gui.doubt_layers import hatching_beside
from napari_peka.gui.layers import LayerTuple, slide_layer
from napari_peka.gui.map_layers import best_gene, heatmap_layer
from napari_peka.gui.placing import below_maps
from napari_peka.gui.words import in_the_window
from napari_peka.io.slide_list import ENDINGS, PLAIN_ENDINGS

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

RESULT_ENDING, SESSION_ENDING = ".peka.zarr", ".peka.json"
#: a tif without pyramid is taken for a slide from this longer side on, px
_SLIDE_PX = 4096


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerTuple]] | None:
    """Return a reader for slides and predicted maps, or None for anything else; nothing is decoded."""
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    if not paths or not all(_is_ours(Path(p)) for p in paths):
        return None
    return read_layers


def read_layers(path: str | Sequence[str]) -> list[Any]:
    """Open slides and predicted maps; an error is one sentence in the viewer, never a traceback."""
    from napari_peka.io.prediction import read_prediction
    from napari_peka.io.slide import open_slide

    _know_viewer()
    layers: list[LayerTuple] = []
    for one in [path] if isinstance(path, (str, Path)) else path:
        try:
            if Path(one).name.lower().endswith(SESSION_ENDING):
                _restore(Path(one))
            elif Path(one).name.lower().endswith(RESULT_ENDING):
                prediction = read_prediction(one)
                heatmap = heatmap_layer(prediction, best_gene(prediction))
                layers += [heatmap, *hatching_beside(heatmap)]
            else:
                slide = open_slide(one)
                layers.append(slide_layer(slide))
                _below_maps_later(slide)
                _say(f"{slide.path.name}: {w}" for w in slide.warnings)
        except PekaError as e:
            _say([str(e)], error=True)
    return layers or [(None,)]  # npe2's word for "read, and nothing to show"


def _know_viewer() -> None:
    """Let what is opened lie on what is open already, whatever docks there are."""
    from napari import current_viewer

    from napari_peka.gui.session import session_of

    if (viewer := current_viewer()) is not None:
        session_of(viewer)


def _below_maps_later(slide: Slide) -> None:
    """Have a slide put below its maps once napari has added it, on top of all."""
    from napari import current_viewer
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    viewer = current_viewer()
    if viewer is not None and QApplication.instance() is not None:
        QTimer.singleShot(0, partial(below_maps, viewer, slide))


def _restore(path: Path) -> None:
    """Bring a session back into the viewer that is open."""
    from napari import current_viewer

    from napari_peka.gui.session import session_of
    from napari_peka.gui.session_file import read_session, show_session

    viewer = current_viewer()
    if viewer is None:
        raise SettingError("a session is opened into a viewer; there is none")
    opened = read_session(path)
    show_session(session_of(viewer), opened)
    _say(opened.problems)


def sample_slide_data() -> list[LayerTuple]:
    """Return the embedded slide."""
    from napari_peka.io.sample import sample_slide
    from napari_peka.io.slide import open_slide

    return [slide_layer(open_slide(sample_slide()))]


def _say(sentences: Iterable[str], error: bool = False) -> None:
    from napari.utils.notifications import show_error, show_warning

    for sentence in sentences:
        (show_error if error else show_warning)(in_the_window(sentence))


def _is_ours(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith((*ENDINGS, RESULT_ENDING, SESSION_ENDING)):
        return True
    return name.endswith(PLAIN_ENDINGS) and _tif_is_slide(path)


def _tif_is_slide(path: Path) -> bool:
    """Whether a tif looks like a scan: 8-bit colour in tiles, with a pyramid or very large. Reads one header."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            colour = page.samplesperpixel in (3, 4) and page.bitspersample == 8
            large = max(page.imagelength, page.imagewidth) >= _SLIDE_PX
            levels = len(file.pages) > 1 or bool(page.subifds)
            return bool(colour and page.is_tiled and (large or levels))
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return False
