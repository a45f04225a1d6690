"""Opening napari from the command line: ``python -m napari_peka.gui.launch SLIDE RESULT GENE``."""

from __future__ import annotations

import sys
from pathlib import Path

from napari_peka.core.errors import PekaError, SettingError
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
    viewer = napari.Viewer(title=f"{slide.name} — napari-peka")
    viewer.open([slide, result], plugin="napari-peka")
    explore = viewer.window.add_plugin_dock_widget("napari-peka", "Explore expression")[1]
    explore.pick(gene)
    napari.run()


def main() -> int:
    """Open what the command line names."""
    slide, result, gene = sys.argv[1:]
    try:
        open_result(Path(slide), Path(result), gene)
    except PekaError as e:
        print(f"error: {e}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
