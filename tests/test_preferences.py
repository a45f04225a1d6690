"""The page in napari's Preferences, and what follows from it."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")

from napari.components import ViewerModel

from napari_peka.gui import map_layers, preferences
from napari_peka.gui.look import COLORMAPS
from napari_peka.gui.session import session_of
from napari_peka.io import cache
from napari_peka.io.readers.base import MEMORY_ENVIRONMENT, cache_bytes
from napari_peka.models.folder import models_folder


@pytest.fixture
def page(plugin_settings, npe2pm):
    """This plugin's page, its values in a folder of the test."""
    from importlib.metadata import distribution

    from napari.settings import get_plugin_settings
    from npe2 import PluginManifest

    assert distribution("napari-peka")
    npe2pm.register(PluginManifest.from_distribution("napari-peka"))
    return get_plugin_settings("napari-peka")


def test_what_is_set_is_used(page, monkeypatch, tmp_path):
    for name in ("NAPARI_PEKA_MODELS", cache.ENVIRONMENT, "HF_HUB_OFFLINE", MEMORY_ENVIRONMENT):
        monkeypatch.setenv(name, "")
    page.storage.models_folder = str(tmp_path / "models")
    page.storage.cache_folder = str(tmp_path / "cache")
    page.storage.offline = True
    page.storage.slide_memory_mb = 300
    session_of(ViewerModel())
    assert cache_bytes() == 300 * 2**20
    assert models_folder() == tmp_path / "models"
    assert cache.cache_folder() == tmp_path / "cache"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    page.storage.offline = False
    preferences.apply()
    assert "HF_HUB_OFFLINE" not in os.environ
    assert preferences.setting("predict", "device", None) == "auto"
    assert preferences.setting("predict", "no such thing", 7) == 7


def test_an_empty_field_is_no_wish(page, monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "mine"))
    preferences.apply()
    assert cache.cache_folder() == tmp_path / "mine"


def test_new_maps_look_as_the_last_one(page, sample, tiny_model):
    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        prediction = peka.predict(slide, tiny_model)
    preferences.remember("maps", "colormap", "viridis")
    preferences.remember("maps", "fade", False)
    preferences.remember("maps", "colormap", "jet")  # not on the page: nothing happens
    assert map_layers.heatmap_layer(prediction, "KRT8")[1]["colormap"].name == "viridis"
    assert page.maps.colormap == "viridis"


def test_the_page_offers_the_colours_that_there_are(page):
    enum = type(page.maps).model_fields["colormap"].json_schema_extra["enum"]
    assert enum == list(COLORMAPS)


def test_without_the_plugin_all_is_as_usual():
    assert preferences.setting("predict", "device", "auto") == "auto"
    preferences.remember("maps", "colormap", "viridis")
    assert preferences.usual_look().colormap == "magma"


def test_the_cache_is_kept_in_its_room(page, monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path))
    monkeypatch.setenv(cache.ROOM_ENVIRONMENT, "")
    folder = cache.kept_in(cache.EMBEDDINGS)
    for i in range(3):
        path = folder / f"S{i}-0123456789abcdef.safetensors"
        path.write_bytes(bytes(10_000_000))
        os.utime(path, (1e9 + i, 1e9 + i))
    page.storage.cache_gb = 0.02
    preferences.tidy_cache()
    assert sorted(p.name[:2] for p in folder.iterdir()) == ["S1", "S2"]
    cache.touch(folder / "S1-0123456789abcdef.safetensors")  # used today: it stays, though it is the oldest
    page.storage.cache_gb = 0.001
    preferences.tidy_cache()
    assert [p.name[:2] for p in folder.iterdir()] == ["S1"]
    page.storage.cache_gb = 0
    preferences.tidy_cache()
    assert len(list(folder.iterdir())) == 1
