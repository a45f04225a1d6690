"""The one folder for model bundles and encoder weights; many people may share it read-only."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

ENVIRONMENT = "NAPARI_PEKA_MODELS"
ENCODERS_FOLDER = "encoders"


def models_folder(setting: str | Path | None = None) -> Path:
    """Return the models folder: `setting`, or ``$NAPARI_PEKA_MODELS``, or the platform's data folder.

    It need not exist and is never created here: looking something up must not need the right to write.
    """
    said = setting or os.environ.get(ENVIRONMENT)
    if said:
        return Path(said).expanduser()
    return platformdirs.user_data_path("napari-peka", appauthor=False) / "models"


def use_models_folder(path: str | Path | None) -> None:
    """Take `path` as the models folder from now on, in this process and in those it starts; None: the usual one.

    For whoever holds the setting (preferences, a configuration file): it goes before what the environment said.
    """
    if path:
        os.environ[ENVIRONMENT] = str(Path(path).expanduser())
    else:
        os.environ.pop(ENVIRONMENT, None)


def encoder_folder(name: str, setting: str | Path | None = None) -> Path:
    """Return the folder of one encoder's weights inside the models folder; capitals of its name do not matter."""
    folder = models_folder(setting) / ENCODERS_FOLDER / name.replace("/", "-").replace(":", "-")
    if not folder.is_dir():
        try:
            beside = sorted(folder.parent.iterdir())
        except OSError:  # not there, or not ours to read
            return folder
        return next((p for p in beside if p.name.casefold() == folder.name.casefold()), folder)
    return folder
