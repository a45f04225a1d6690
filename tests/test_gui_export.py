"""The panel that writes a map for other programs; a window is needed (Xvfb will do)."""

from __future__ import annotations

import dataclasses
import os
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from qtpy.QtWidgets import QFileDialog

from napari_peka.core.doubt import Intervals
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.gui.export_panel import THIS, ExportPanel
from napari_peka.io.export import FORMATS
from napari_peka.io.prediction import Prediction

WAIT_MS = 60_000


@pytest.fixture
def prediction():
    rng = np.random.default_rng(0)
    tiles = TileTable.grid((8 * 64, 9 * 64), (0.5, 0.5), TileSpec(64, 0.5))
    weights = rng.normal(size=(4, 2)).astype(np.float32)
    head = GeneHead(weights, np.zeros(2, np.float32), ("ERBB2", "KRT8"), "log1p CP10K")
    embeddings = rng.normal(size=(len(tiles), 4)).astype(np.float16)
    ood = rng.uniform(0, 100, len(tiles)).astype(np.float32)
    return Prediction(tiles, embeddings, head, np.ones(len(tiles), bool), {"slide": {"name": "s"}}, ood=ood)


def test_intervals_are_exported_when_ticked(qtbot, tmp_path, prediction, monkeypatch):
    panel = ExportPanel()
    qtbot.addWidget(panel)
    panel.genes.setCurrentText(THIS)

    def press(to: str, made) -> None:
        path = tmp_path / f"a{FORMATS[to].endings[0]}"
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(path), ""))
        with qtbot.waitSignal(panel.panel.succeeded, timeout=WAIT_MS):
            panel.choose(made, None, "ERBB2", [])
        return path

    known = Intervals(np.array([0.05, 0.5, 0.95]), np.array([[-1, -1], [0, 0], [2, 1]], np.float32))
    doubtful = dataclasses.replace(prediction, intervals=known)
    panel.format.setCurrentIndex(panel.format.findData("png"))
    assert not panel.intervals.isEnabled()
    for to, by_itself in (("h5ad", True), ("ome-tiff", False)):
        panel.format.setCurrentIndex(panel.format.findData(to))
        assert panel.intervals.isChecked() == by_itself
    panel.intervals.click()
    assert len(tifffile.imread(press("ome-tiff", doubtful))) == 4  # with ends, and how unlike the training data
    panel.format.setCurrentIndex(panel.format.findData("csv"))
    table = pd.read_csv(press("csv", doubtful))
    np.testing.assert_allclose(table["ERBB2_upper"], doubtful.interval("ERBB2")[1], atol=1e-4)
    assert "ERBB2_upper" not in pd.read_csv(press("csv", prediction)), "a model without intervals as ever"
    panel.format.setCurrentIndex(panel.format.findData("h5ad"))
    panel.intervals.click()
    assert not anndata.read_h5ad(press("h5ad", doubtful)).layers
