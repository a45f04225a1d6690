"""What a person set in napari's Preferences, on this plugin's page. There is no Qt in here.

The page is declared in the manifest (``configurations``); napari shows it and keeps its values in a file of its own.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from napari_peka.gui.look import COLORMAPS, Look
from napari_peka.io import cache
from napari_peka.io.readers.base import MEMORY_ENVIRONMENT
from napari_peka.models.folder import use_models_folder

_PLUGIN = "napari-peka"
_OFFLINE = "HF_HUB_OFFLINE"
#: whether this page keeps us from the hub
_forbidden = False


def setting(group: str, name: str, default: Any) -> Any:
    """Return a value of the Preferences page; `default` where napari does not know this plugin."""
    page = getattr(_page(), group, None)
    return getattr(page, name, default)


def remember(group: str, name: str, value: Any) -> None:
    """Keep a value on the Preferences page, where napari knows this plugin."""
    page = getattr(_page(), group, None)
    if page is not None and getattr(page, name, None) != value:
        with suppress(ValueError):
            setattr(page, name, value)


def usual_look() -> Look:
    """Return how maps look before anybody changes it."""
    name = setting("maps", "colormap", Look().colormap)
    return Look(colormap=name if name in COLORMAPS else Look().colormap, fade=bool(setting("maps", "fade", True)))


def apply() -> None:
    """Take folders and *offline* from the page, for this process and those that it starts; empty is no wish."""
    if folder := str(setting("storage", "models_folder", "")).strip():
        use_models_folder(folder)
    if folder := str(setting("storage", "cache_folder", "")).strip():
        os.environ[cache.ENVIRONMENT] = folder
    if memory := int(setting("storage", "slide_memory_mb", 0)):
        os.environ[MEMORY_ENVIRONMENT] = str(memory)
    _take_room()
    _go_offline(bool(setting("storage", "offline", False)))


def _go_offline(wish: bool) -> None:
    """Reach no hub; without the wish, reach it again unless somebody else forbade it."""
    global _forbidden
    if wish == _forbidden or (wish and os.environ.get(_OFFLINE) == "1"):
        return
    _forbidden = wish
    if wish:
        os.environ[_OFFLINE] = "1"
    else:
        os.environ.pop(_OFFLINE, None)
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:  # it reads the environment once, when it is imported
        hub.HF_HUB_OFFLINE = wish  # type: ignore[attr-defined]


def tidy_cache() -> None:
    """Remove what is kept and was not used for longest until it fits the room on the page; 0: as much as it likes."""
    _take_room()
    cache.tidy()


def _take_room() -> None:
    if (gb := setting("storage", "cache_gb", None)) is not None:
        os.environ[cache.ROOM_ENVIRONMENT] = str(gb)


def _page() -> Any:
    try:
        from napari.settings import get_plugin_settings
    except ImportError:  # an older napari has no such pages
        return None
    with suppress(Exception):  # napari builds the pages of all plugins at once: another one's fault is not ours
        return get_plugin_settings(_PLUGIN)
    return None
