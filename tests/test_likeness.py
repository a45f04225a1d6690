"""How unlike the training data a tile is: measured before an embedding is narrowed, and kept wherever it goes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapely
import torch

import napari_peka as peka
from bundles import made
from napari_peka.core.progress import Cancelled
from napari_peka.io import cache
from napari_peka.io.kept_tiles import ENVIRONMENT
from napari_peka.io.tiles import read_tiles
from napari_peka.models.bundle import save_bundle
from napari_peka.models.reference import IMAGE, distances, image_reference_of, reference_of
from napari_peka.models.student import build_student
from napari_peka.workflows.refit import with_model
from napari_peka.workflows.standing import read_what_is_there

CONFIG = peka.PredictConfig(device="cpu", precision="fp32", batch_size=8)
PART = shapely.box(900, 900, 2200, 2200)
NARROW = {"translate": (48, 6), "features": "peka"}


@pytest.fixture
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as opened:
        yield opened


@pytest.fixture(scope="module")
def trained(tissue_tiff, tmp_path_factory):
    """What the encoder of a narrowed model sees in one half of a slide, as if it had been trained there."""
    model, _ = made(tmp_path_factory.mktemp("narrow"), **NARROW)
    student = build_student(model)
    with peka.open_slide(tissue_tiff) as opened:
        whole = peka.predict(opened, model, config=CONFIG, region=shapely.box(0, 0, 4000, 1500))
        tiles = np.concatenate([read_tiles(opened, whole.tiles, b)[0] for b in whole.tiles.blocks()])
    with torch.inference_mode():
        wide = student.embed(torch.from_numpy(tiles)).numpy()
        narrow = student(torch.from_numpy(tiles)).numpy()
    return wide, narrow


def with_reference(tmp_path, trained, name="made", **more):
    wide, narrow = trained
    tensors = image_reference_of(wide) | reference_of(narrow) | dict(more.pop("tensors", {}))
    return made(tmp_path, name, tensors=tensors, **NARROW, **more)[0]


def test_the_distance_is_that_of_what_the_encoder_saw(slide, trained, tmp_path):
    model = with_reference(tmp_path, trained)
    assert model.seen_dims == 7
    done = peka.predict(slide, model, config=CONFIG, region=PART)
    assert done.embeddings.shape == (len(done.tiles), 6)
    tiles = np.concatenate([read_tiles(slide, done.tiles, b)[0] for b in done.tiles.blocks()])
    student = build_student(model)
    with torch.inference_mode():
        wide = student.embed(torch.from_numpy(tiles)).numpy()
    wanted = distances(wide, model.image_reference)
    seen = peka.load_forward(model, CONFIG)(tiles)
    np.testing.assert_allclose(seen[:, -1], wanted, rtol=2e-3)
    np.testing.assert_allclose(done.ood, model.ood(seen), atol=1e-3)
    assert 0 <= done.ood.min() < done.ood.max() <= 100
    np.testing.assert_allclose(done.spread, model.spread(done.embeddings), rtol=1e-5)


def test_bfloat16_measures_distances_in_float32(trained, tmp_path):
    model = with_reference(tmp_path, trained)
    student = build_student(model).to(torch.bfloat16)
    tiles = torch.randint(0, 255, (4, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        seen = student(tiles)
        wide = student.embed(tiles).float().numpy()
    assert seen.dtype == torch.float32
    np.testing.assert_allclose(seen[:, -1].numpy(), distances(wide, model.image_reference), rtol=1e-4)


def test_a_stored_map_keeps_it(slide, trained, tmp_path):
    model = with_reference(tmp_path, trained)
    done = peka.predict(slide, model, config=CONFIG, region=PART, output=tmp_path / "a.peka.zarr")
    read = peka.read_prediction(tmp_path / "a.peka.zarr")
    np.testing.assert_array_equal(read.ood, done.ood)
    np.testing.assert_array_equal(read.spread, done.spread)
    assert read.to_anndata(["A"]).obs["ood"].tolist() == pytest.approx(done.ood.tolist())


def test_an_interrupted_run_ends_with_the_same(slide, trained, tmp_path):
    model = with_reference(tmp_path, trained)
    whole = peka.predict(slide, model, config=CONFIG, region=PART)
    blocks = []

    def stop(block, embeddings, ok):
        assert embeddings.shape[1] == 6
        blocks.append(block.index)
        if len(blocks) == 2:
            raise Cancelled("enough")

    out = tmp_path / "a.peka.zarr"
    with pytest.raises(Cancelled):
        peka.predict(slide, model, config=CONFIG, region=PART, output=out, on_block=stop)
    tiles = peka.plan_tiles(slide, model, CONFIG, region=PART)
    there = read_what_is_there(slide, model, tiles, out, config=CONFIG)
    some = np.isfinite(there.ood)
    assert 0 < some.sum() < len(tiles)
    np.testing.assert_array_equal(there.ood[some], whole.ood[some])
    done = peka.predict(slide, model, config=CONFIG, region=PART, output=out)
    assert done.record["run"]["resumed_tiles"] > 0
    np.testing.assert_array_equal(done.ood, whole.ood)


def test_the_cache_keeps_it_and_never_gives_that_of_another_reference(slide, trained, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setenv(ENVIRONMENT, "1")
    model = with_reference(tmp_path, trained)
    first = peka.predict(slide, model, config=CONFIG, region=PART)
    again = peka.predict(slide, model, config=CONFIG, region=PART)
    assert again.record["run"]["resumed_tiles"] == len(again.tiles)
    np.testing.assert_array_equal(again.ood, first.ood)
    moved = {k: v + 3 if k == f"{IMAGE}mean" else v for k, v in image_reference_of(trained[0]).items()}
    other = with_reference(tmp_path, trained, "other", tensors=moved)
    assert other.embedding_digest == model.embedding_digest
    assert other.seen_digest != model.seen_digest
    far = peka.predict(slide, other, config=CONFIG, region=PART)
    assert far.record["run"]["resumed_tiles"] == 0
    assert far.ood.mean() > first.ood.mean()


def test_another_head_of_the_same_encoder_keeps_it_without_inference(slide, trained, tmp_path):
    model = with_reference(tmp_path, trained)
    done = peka.predict(slide, model, config=CONFIG, region=PART, output=tmp_path / "a.peka.zarr")
    weights = {"head.weights": np.ones((6, 3), np.float32)}
    head = with_reference(tmp_path, trained, "head", tensors=weights)
    assert (head.embedding_digest, head.digest) != (model.embedding_digest, model.digest)
    np.testing.assert_array_equal(with_model(done, head).ood, done.ood)
    again = peka.predict(slide, head, config=CONFIG, region=PART, output=tmp_path / "a.peka.zarr", overwrite=True)
    assert again.record["run"]["resumed_tiles"] == len(again.tiles)
    np.testing.assert_array_equal(again.ood, done.ood)
    moved = image_reference_of(trained[0] + 3)
    other = with_reference(tmp_path, trained, "other", tensors=moved | weights)
    assert with_model(done, other).ood is None, "what the encoder saw is not kept, so it cannot be measured anew"


def test_a_bundle_whose_reference_does_not_fit_is_refused(trained, tmp_path):
    model = with_reference(tmp_path, trained)
    tensors = {f"translate.{k}": v for k, v in [("0.weight", model.tensors["translate.0.weight"]),
                                               ("0.bias", model.tensors["translate.0.bias"])]}  # fmt: skip
    tensors |= model.carried | {"head.weights": model.head.weights, "head.bias": model.head.bias}
    short = tensors | {f"{IMAGE}mean": tensors[f"{IMAGE}mean"][:-1]}
    with pytest.raises(
        peka.BundleError if hasattr(peka, "BundleError") else Exception, match=r"reference\.image\.mean"
    ):
        save_bundle(tmp_path / "short", model.spec, short)


def test_a_model_that_is_not_narrowed_measures_its_embedding(slide, tmp_path):
    plain, _ = made(tmp_path, "plain")
    whole = peka.predict(slide, plain, config=CONFIG, region=PART)
    assert whole.ood is None
    arrays = {"head.weights": plain.head.weights, "head.bias": plain.head.bias, **plain.tensors}
    arrays |= reference_of(whole.embeddings.astype(np.float32))
    model = save_bundle(tmp_path / "known", plain.spec, arrays)
    done = peka.predict(slide, model, config=CONFIG, region=PART)
    np.testing.assert_allclose(done.ood, model.ood(done.embeddings), atol=1e-3)
    assert dataclasses.replace(done).ood is done.ood
