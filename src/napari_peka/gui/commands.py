"""What the menus and the command palette offer; each opens the dock that does it."""

from __future__ import annotations

from typing import Any

from napari_peka.core.errors import SettingError

_PLUGIN = "napari-peka"


def open_session() -> None:
    """Ask for a session and bring it back."""
    dock("Slide").sessions.ask_open()


def save_session() -> None:
    """Ask for a file and save the session to it."""
    dock("Slide").sessions.ask_save()


def open_slide() -> None:
    """Ask for a slide and open it."""
    dock("Slide").ask_open()


def export_map() -> None:
    """Ask for a file and export the map that is explored."""
    explore = dock("Explore expression")
    explore.fold.expand(animate=False)
    explore.exports.asked.emit()


def dock(name: str) -> Any:
    """Return one of our docks in the viewer that is open; it is opened where it is not.

    Raises
    ------
    SettingError
        If there is no viewer.
    """
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is None:
        raise SettingError("there is no viewer; open napari first")
    docked, widget = viewer.window.add_plugin_dock_widget(_PLUGIN, name, tabify=True)
    docked.show()
    docked.raise_()
    return widget
