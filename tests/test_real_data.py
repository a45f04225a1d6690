"""The demo model on real images: every one is predicted, and a section left out of training is met as its card says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import shapely
from scipy.spatial import cKDTree

import napari_peka as peka

REPO = Path(__file__).resolve().parent.parent
#: µm per pixel where the file has none or an absurd one: from the spot array's pitch, or a guess for an overview
MPP = {"C2.jpg": 0.687, "C3.jpg": 0.687, "C4.jpg": 0.687, "C5.jpg": 0.687, "slide.tiff": 0.5, "slide.jpeg": 0.5}
MPP["slide_with_ink.jpeg"] = 4.0
IMAGES = ("wsi/cmu_small_region.svs", "wsi/slide.tiff", "wsi/slide.jpeg", "wsi/slide_with_ink.jpeg")
SECTIONS = ("st/C2.jpg", "st/C3.jpg", "st/C4.jpg", "st/C5.jpg")


@pytest.fixture(scope="module")
def demo():
    return peka.load_model("demo")


@pytest.fixture(scope="module")
def sections(shared_data):
    opened = peka.read_sections([shared_data / "st" / f"{n}.tsv.gz" for n in ("C2", "C3", "C4", "C5")], patient="C")
    yield opened
    for s in opened:
        s.close()


@pytest.mark.slow
@pytest.mark.timeout(1500)  # 732 spots and a whole map, four rotations each, on whatever cores are there
def test_the_demos_recipe_predicts_a_section_that_was_left_out(sections, tmp_path):
    """What the card says of sections left out is met by one that is left out here, on its spots and on a map."""
    spec = importlib.util.spec_from_file_location("train_demo", REPO / "scripts" / "train_demo.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = peka.TrainConfig(**script.RECIPE | {"hold_out": "C5", "adapter": "none"})
    model = peka.train(sections, config, output=tmp_path / "m", cache=tmp_path)
    report = peka.evaluate(model, sections[3:], cache=tmp_path)
    assert report.summary["pcc_hvg50"]["mean"] > 0.40
    assert report.summary["pcc_hvg50"]["mean"] > 0.05 + report.summary["baselines"]["colour"]["pcc_hvg50"]["mean"]
    c5 = sections[3]
    prediction = peka.predict(c5.slide, model, output=tmp_path / "C5.peka.zarr")
    counts = np.asarray(c5.counts[:, c5.genes.index("CD24")].todense()).ravel()
    values = np.log1p(counts / np.asarray(c5.counts.sum(1)).ravel() * 1e4)
    distance, nearest = cKDTree(prediction.tiles.centre_yx).query(c5.centre_yx)
    near = distance < 150
    assert near.mean() > 0.9, "the map covers the measured tissue"
    there = np.corrcoef(prediction.values("CD24")[nearest][near], values[near])[0, 1]
    assert there > 0.45
    # the same map shifted by a few tiles is worse: positions are right, not only the overall level
    shifted = cKDTree(prediction.tiles.centre_yx + np.array([2200.0, 0.0])).query(c5.centre_yx)
    far = shifted[0] < 150
    assert np.corrcoef(prediction.values("CD24")[shifted[1]][far], values[far])[0, 1] < there


def test_the_demo_was_judged_on_sections_left_out(demo, sections):
    assert {t["name"] for t in demo.trained_on} == {"C2", "C3", "C4", "C5"}
    assert {t["fingerprint"] for t in demo.trained_on} == {s.fingerprint for s in sections}
    assert "left out in turn" in demo.spec.head.pcc_split
    summary = demo.spec.training["summary"]
    assert summary["pcc_hvg50"]["mean"] > summary["baselines"]["colour"]["pcc_hvg50"]["mean"]


@pytest.mark.slow
@pytest.mark.parametrize("image", [*IMAGES, *SECTIONS])
def test_every_real_image_is_predicted(shared_data, demo, tmp_path, image):
    path = shared_data / image
    with peka.open_slide(path, mpp=MPP.get(path.name)) as slide:
        prediction = peka.predict(slide, demo, output=tmp_path / "a.peka.zarr")
        picture = peka.write_map(prediction, slide, "ERBB2", tmp_path / "a.png")
        on_tissue = peka.find_tissue(slide).polygons()
    assert prediction.n_unreadable == 0
    assert np.isfinite(prediction.values("ERBB2")).all()
    assert prediction.values("ERBB2").std() > 0
    assert picture.stat().st_size > 10_000
    y, x, h, w = prediction.tiles.rects().T
    assert shapely.intersects(on_tissue, shapely.box(x, y, x + w, y + h)).all()
