"""The stain that a model is shown is brought to that of its training data, where a person asks for it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import shapely

import napari_peka as peka
from bundles import made
from napari_peka.core.errors import NoTissue, OutputMismatch, SettingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io import cache
from napari_peka.io.kept_tiles import ENVIRONMENT
from napari_peka.models.reference import reference_of
from napari_peka.trust.stain import METHODS, SHAPES, StainMap, fit_stain, stain_reference, target_of
from napari_peka.workflows.sampling import sampled_tiles
from napari_peka.workflows.slide_check import stain_effect, stain_map

pytest.importorskip("torchstain", reason="torchstain is not installed (pip install 'napari-peka[stain]')")
PLAIN = {"device": "cpu", "precision": "fp32", "backend": "torch", "batch_size": 8}
#: another laboratory: bluer haematoxylin, weaker eosin; a darker, bluer Lab
TARGETS = {
    "reference.macenko": np.array([[0.75, 0.58, 0.32, 2.0], [0.4, 0.79, 0.46, 0.9]], np.float32),
    "reference.reinhard": np.array([[54, 16, -21], [19, 5, 8]], np.float32),
}
REGION = shapely.box(300, 300, 1300, 1500)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setenv(ENVIRONMENT, "1")


@pytest.fixture
def slide(sample):
    with peka.open_slide(sample) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiles(sample, tiny_model) -> np.ndarray:
    with peka.open_slide(sample) as opened:
        tissue = peka.find_tissue(opened)
        return sampled_tiles(opened, peka.plan_tiles(opened, tiny_model, tissue=tissue), tissue).tiles


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    embeddings = np.random.default_rng(0).normal(size=(200, 48)).astype(np.float32)
    return made(tmp_path_factory.mktemp("bundles"), tensors={**reference_of(embeddings), **TARGETS})[0]


def config(stain: str) -> peka.PredictConfig:
    return peka.PredictConfig(**PLAIN, stain=stain)


# -- colours -----------------------------------------------------------------------------------------------------


def test_one_image_is_normalised_as_by_torchstain(tiles):
    """With the slide's fit taken from the very image, it is torchstain's own normalisation."""
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    image = np.concatenate(list(tiles[:20]))
    theirs = NumpyMacenkoNormalizer()
    target = TARGETS["reference.macenko"]
    theirs.HERef, theirs.maxCRef = target[:, :3].T, target[:, 3]
    wanted, _, _ = theirs.normalize(image)
    own = NumpyMacenkoNormalizer()
    own.fit(image)
    got = StainMap("macenko", np.column_stack([own.HERef.T, own.maxCRef]), target)(image)
    assert np.abs(got.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_normalised_tiles_have_the_stain_that_was_wanted(tiles, method):
    target = TARGETS[f"reference.{method}"]
    source = fit_stain(tiles, method)
    assert source.shape == SHAPES[method]
    now = fit_stain(StainMap(method, source, target)(tiles), method)
    assert np.abs(now - target).max() < 0.35 * np.abs(source - target).max()
    same = StainMap(method, source, source)(tiles).astype(int)
    assert np.abs(same - tiles).mean() < 6, "towards its own stain hardly anything changes"


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass_and_shapes_stay(tiles, method):
    change = StainMap(method, fit_stain(tiles, method), TARGETS[f"reference.{method}"])
    glass = np.full((2, 8, 8, 3), 240, np.uint8)
    assert np.abs(change(glass).astype(int) - 240).max() <= 8
    assert change(tiles[0]).shape == tiles[0].shape
    np.testing.assert_array_equal(change(tiles)[3], change(tiles[3]))  # one map for all: no tile is fitted by itself


def test_what_cannot_be_fitted_is_said(tiles):
    with pytest.raises(NoTissue, match=r"too little stained tissue .*\(stain = none\)"):
        fit_stain(np.full((4, 64, 64, 3), 240, np.uint8), "macenko")
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None, None], (200, 256, 1, 3))
    with pytest.raises(NoTissue, match="only one stain"):
        fit_stain(np.ascontiguousarray(grey), "macenko")
    assert set(stain_reference(tiles)) == {"reference.macenko", "reference.reinhard"}
    assert stain_reference(np.full((4, 64, 64, 3), 240, np.uint8)) == {}


def test_without_torchstain_it_is_refused_and_a_training_keeps_none(tiles, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchstain.numpy", None)
    with pytest.raises(SettingError, match=r"pip install 'napari-peka\[stain\]'"):
        fit_stain(tiles, "reinhard")
    assert stain_reference(tiles) == {}


def test_a_model_that_keeps_no_stain_is_refused_before_any_work(slide, tiny_model, tmp_path):
    with pytest.raises(SettingError, match="the model tiny does not say what stain"):
        peka.predict(slide, tiny_model, output=tmp_path / "a.zarr", config=config("macenko"))
    assert not list(tmp_path.glob("a.zarr*"))
    with pytest.raises(SettingError, match="does not say"):
        target_of({"reference.macenko": np.zeros((3, 3))}, "macenko", "odd")


# -- predictions -------------------------------------------------------------------------------------------------


def test_a_normalised_map_is_another_result(slide, model, tmp_path):
    path = tmp_path / "a.peka.zarr"
    plain = peka.predict(slide, model, output=path, region=REGION, config=config("none"))
    assert "stain" not in plain.record["identity"], "results of before stay resumable"
    with pytest.raises(OutputMismatch, match="another way to normalise the stain"):
        peka.predict(slide, model, output=path, region=REGION, config=config("macenko"))
    other = peka.predict(slide, model, output=path, region=REGION, config=config("macenko"), overwrite=True)
    assert other.record["identity"]["stain"].startswith("macenko ")
    assert other.record["run"]["resumed_tiles"] == 0, "nothing that was seen in other colours is taken for it"
    assert np.abs(other.embeddings.astype(np.float32) - plain.embeddings).max() > 0.01
    with pytest.raises(OutputMismatch, match="another way to normalise the stain"):
        peka.predict(slide, model, output=path, region=REGION, config=config("none"))


def test_the_model_is_shown_the_normalised_colours_whatever_the_region(slide, model):
    from napari_peka.io.tiles import read_tiles
    from napari_peka.workflows.predict import load_forward

    got = peka.predict(slide, model, region=REGION, config=config("macenko"))
    change = stain_map(slide, model, config("macenko"))
    block = got.tiles.blocks()[0]
    tiles, _ = read_tiles(slide, got.tiles, block)
    wanted = load_forward(model, config("none"))(change(tiles))
    np.testing.assert_allclose(got.embeddings[block.start : block.stop], wanted, atol=5e-3)


def test_stopped_and_gone_on_with_it_gives_the_same(slide, model, tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "0")
    whole = peka.predict(slide, model, output=tmp_path / "a.zarr", region=REGION, config=config("reinhard"))
    progress = JobProgress()

    def stop(*_):
        progress.cancel()

    with pytest.raises(Cancelled):
        peka.predict(
            slide,
            model,
            output=tmp_path / "b.zarr",
            region=REGION,
            config=config("reinhard"),
            on_block=stop,
            progress=progress,
        )
    again = peka.predict(slide, model, output=tmp_path / "b.zarr", region=REGION, config=config("reinhard"))
    assert again.record["run"]["resumed_tiles"] > 0
    np.testing.assert_array_equal(again.embeddings, whole.embeddings)


def test_a_worker_shows_the_same_colours(slide, model, tmp_path):
    pytest.importorskip("distributed")
    from napari_peka.io.block_files import BlockFiles
    from napari_peka.workflows import crew_work

    got = peka.predict(slide, model, region=REGION, config=config("macenko"))
    block = got.tiles.blocks()[0]
    crew_work.models[model.digest] = model
    files = BlockFiles(tmp_path, model.head.embedding_dims)
    item = crew_work.Item(
        slide.path, slide.fingerprint, got.tiles.of_blocks([block]), (0,), files, config("macenko"), model.digest,
        ("float32", "cpu"), stain_map(slide, model, config("macenko")),
    )  # fmt: skip
    crew_work.work(item)
    embeddings, _ = files.read(0, len(block))
    np.testing.assert_allclose(embeddings, got.embeddings[block.start : block.stop], atol=2e-3)


def test_its_effect_is_said_in_percentiles(slide, model, tiny_model):
    line = stain_effect(slide, model, config("macenko"))
    assert line.key == "normalisation"
    assert "percentile" in line.text
    check = peka.check_slide(slide, model, config=config("macenko"))
    assert check["stain"].state == "unknown", "this model keeps no colours"
    assert stain_effect(slide, tiny_model, config("macenko")).state == "unknown"
