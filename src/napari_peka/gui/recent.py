"""Which models a person used last. There is no Qt in here.

Kept in a small file of its own: napari's Preferences are what a person sets, this is what happened.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import platformdirs

from napari_peka.core import files
from napari_peka.core.errors import StoreError

#: models that are remembered
MOST = 8


def recent_file() -> Path:
    """Return where it is kept."""
    return platformdirs.user_config_path("napari-peka", appauthor=False) / "recent.json"


def recent_models() -> list[str]:
    """Return paths of bundles, and hub ids, newest first; what is not there any more is left out."""
    try:
        names = json.loads(recent_file().read_text("utf-8"))["models"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [n for n in names if isinstance(n, str) and (is_hub_id(n) or Path(n).exists())]


def remember_model(name: str) -> None:
    """Put a model first; where it cannot be written, nothing is remembered."""
    names = [name, *(n for n in recent_models() if n != name)][:MOST]
    with suppress(OSError, StoreError):
        files.make_folder(recent_file().parent)
        files.write_whole(recent_file(), json.dumps({"models": names}, indent=1).encode())


def is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the hub, ``user/name``, and no path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
