"""Fixtures that several tests share: real data where it is there, a small slide, a tiny model."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent
# where a run decides what lands the same cases are drawn each time; elsewhere new ones, to find what nobody thought of
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
#: s within which a thing of a moment has ended on a busy machine
ENDS_S = 30.0
GENES = ("ERBB2", "KRT8", "COL1A1", "MKI67", "CD3E")


def pytest_configure(config):
    """Have encoders run by torch; give each process of a parallel run on a virtual screen one of its own.

    On a screen one window has the focus.
    """
    # tests of other engines say so: they compile for seconds, which a small slide does not win back
    os.environ["NAPARI_PEKA_BACKEND"] = "torch"
    # nor does a test take what another one has computed; those of what is kept say so
    os.environ["NAPARI_PEKA_REUSE"] = "0"
    if not (os.environ.get("PYTEST_XDIST_WORKER") and os.environ.get("DISPLAY") and shutil.which("Xvfb")):
        return
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=(write,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as said:
        number = said.readline().strip()  # it says so once it is ready; nothing when it could not start
    if number:
        os.environ["DISPLAY"] = f":{number}"
        config.add_cleanup(server.wait)  # the last is called first
        config.add_cleanup(server.terminate)


@pytest.fixture(autouse=True)
def _own_models_folder(tmp_path_factory, monkeypatch):
    """No test sees the models of whoever runs it, and none reaches a hub."""
    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(tmp_path_factory.getbasetemp() / "models"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _main_thread_is_free(request):
    """Fail a test of the window in which this package held the main thread."""
    if not request.node.path.stem.startswith("test_gui") or not hasattr(time, "pthread_getcpuclockid"):
        yield
        return
    from watchdog import Watchdog

    with Watchdog() as dog:
        yield
    assert not dog.holds, "\n".join(f"{s * 1000:.0f} ms:\n{where}" for s, where in dog.holds)


_frozen: list[bool] = []


@pytest.fixture(autouse=True)
def _collect_only_what_is_new(request):
    """Leave out of garbage collections what the libraries made: each of them takes a third of a second with it."""
    yield
    if request.node.path.stem.startswith("test_gui") and not _frozen:
        gc.collect()
        gc.freeze()
        _frozen.append(True)


@pytest.fixture(autouse=True)
def _no_thread_is_left(request):
    """Fail a test of the window that leaves a job behind; what runs beside a window ends by itself."""
    yield
    if not request.node.path.stem.startswith("test_gui"):
        return
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "peka-aside":
            thread.join(ENDS_S)
    left = [t.name for t in threading.enumerate() if t.name.startswith("peka-")]
    assert not left, f"still running: {left}"


@pytest.fixture(autouse=True)
def _own_preferences(request, monkeypatch):
    """No test reads or writes the preferences of whoever runs it, or what they used last."""
    from napari_peka.gui import preferences, recent

    folder = request.getfixturevalue("tmp_path_factory").mktemp("config")
    monkeypatch.setattr(recent, "recent_file", lambda: folder / "recent.json")
    if "plugin_settings" not in request.fixturenames:
        monkeypatch.setattr(preferences, "_page", lambda: None)


@pytest.fixture
def brief(monkeypatch):
    """Let an estimate time tiles for a moment only."""
    monkeypatch.setattr("napari_peka.workflows.estimate.ENOUGH_S", 0.1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and sections, which a clone alone does not have."""
    folder = Path(os.environ.get("NAPARI_PEKA_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set NAPARI_PEKA_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def sample() -> Path:
    """The embedded slide."""
    from napari_peka.io.sample import sample_slide

    return sample_slide()


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory) -> Path:
    """A bundle on the tiny random encoder, with five genes."""
    from napari_peka.models.bundle import BundleSpec, save_bundle
    from napari_peka.models.registry import encoder_card

    card = encoder_card("tiny-random")
    rng = np.random.default_rng(0)
    spec = BundleSpec(
        schema=1,
        name="tiny",
        encoder={"name": card.name},
        preprocessing={"tile_px": card.px, "mpp": 1.0, "mean": card.mean, "std": card.std},
        head={
            "n_dims": card.dim,
            "genes": list(GENES),
            "unit": "log1p CP10K",
            "pcc": [0.6, 0.35, 0.2, 0.05, None],
            "pcc_split": "none: random weights",
        },
    )
    weights = rng.normal(size=(card.dim, len(GENES))).astype(np.float32)
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(folder, spec, {"head.weights": weights, "head.bias": np.zeros(len(GENES), np.float32)})
    return folder


@pytest.fixture(scope="session")
def tiny_model(bundle_folder):
    """The model of :func:`bundle_folder`."""
    from napari_peka.models.bundle import read_bundle

    return read_bundle(bundle_folder)


@pytest.fixture(scope="session")
def tissue_tiff(tmp_path_factory) -> Path:
    """A tiled pyramid of 3000 x 4000 px at 0.5 µm/px: pink tissue with structure on white glass."""
    import tifffile

    rng = np.random.default_rng(1)
    image = np.full((3000, 4000, 3), 244, np.uint8)
    y, x = np.mgrid[:3000, :4000]
    inside = ((y - 1500) / 1200) ** 2 + ((x - 2000) / 1700) ** 2 < 1
    texture = rng.integers(-25, 25, (3000, 4000, 1))
    tissue = np.array([205, 140, 185]) + texture + (40 * np.sin(x / 90) * np.cos(y / 70))[..., None]
    image[inside] = np.clip(tissue, 0, 255).astype(np.uint8)[inside]
    path = tmp_path_factory.mktemp("slides") / "tissue.tif"
    with tifffile.TiffWriter(path) as writer:
        for level in (1, 4):
            writer.write(
                np.ascontiguousarray(image[::level, ::level]),
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                resolution=(20000 / level, 20000 / level),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 1),
                metadata=None,
            )
    return path
