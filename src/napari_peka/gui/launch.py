"""Opening napari from the command line."""

from __future__ import annotations

from pathlib import Path

from napari_peka.core.errors import SettingError
from napari_peka.doctor import has_display


def open_result(slide: Path, result: Path, gene: str) -> None:
    """Open napari with a slide and the map of one gene, and wait until it is closed.

    Raises
    ------
    SettingError
        If there is no display or napari is not installed.
    """
    if not has_display():
        raise SettingError("there is no display to open napari on; the picture is in the output folder")
    try:
        import napari
    except ImportError as e:
        raise SettingError("napari is not installed; install it with: pip install 'napari-peka[gui]'") from e
    from napari_peka.gui.layers import heatmap_layer, slide_layer
    from napari_peka.io.slide import open_slide
    from napari_peka.io.store import read_prediction

    viewer = napari.Viewer(title=f"{slide.name} — napari-peka")
    opened = open_slide(slide)
    for data, settings, kind in (slide_layer(opened), heatmap_layer(read_prediction(result), gene)):
        viewer._add_layer_from_data(data, settings, kind)
    napari.run()
