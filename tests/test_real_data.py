"""The demo model on real images: every one is predicted, and a section left out of training is met as its card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from scipy.spatial import cKDTree

import napari_peka as peka

#: µm per pixel where the file has none or an absurd one: from the spot array's pitch, or a guess for an overview
MPP = {"C2.jpg": 0.687, "C3.jpg": 0.687, "C4.jpg": 0.687, "C5.jpg": 0.687, "slide.tiff": 0.5, "slide.jpeg": 0.5}
MPP["slide_with_ink.jpeg"] = 4.0
IMAGES = ("wsi/cmu_small_region.svs", "wsi/slide.tiff", "wsi/slide.jpeg", "wsi/slide_with_ink.jpeg")
SECTIONS = ("st/C2.jpg", "st/C3.jpg", "st/C4.jpg", "st/C5.jpg")


@pytest.fixture(scope="module")
def demo():
    return peka.load_model("demo")


def measured(folder: Path, section: str, gene: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (y, x) and log1p CP10K of the spots under tissue."""
    spots = pd.read_csv(folder / f"{section}_selection.tsv", sep="\t").query("selected == 1")
    spots.index = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"])]
    counts = pd.read_csv(folder / f"{section}.tsv.gz", sep="\t", index_col=0)
    both = spots.index.intersection(counts.index)
    values = np.log1p(counts.loc[both, gene] / counts.loc[both].sum(axis=1) * 1e4)
    return spots.loc[both, ["pixel_y", "pixel_x"]].to_numpy(float), values.to_numpy(float)


def test_a_held_out_section_is_predicted_where_it_was_measured(shared_data, demo, tmp_path):
    """CD24 is among the demo model's best genes: the card says 0.63 over the spots' own tiles.

    The map's tiles lie elsewhere than the spots, up to half a stride away, so its correlation is not the card's.
    """
    section = shared_data / "st" / "C5.jpg"
    with peka.open_slide(section, mpp=0.687) as slide:
        assert slide.fingerprint not in {s["fingerprint"] for s in demo.spec.training["sections"]}
        prediction = peka.predict(slide, demo, output=tmp_path / "C5.peka.zarr")
    for gene, least in (("CD24", 0.45), ("ERBB2", 0.15)):
        centre, values = measured(shared_data / "st", "C5", gene)
        distance, nearest = cKDTree(prediction.tiles.centre_yx).query(centre)
        near = distance < 150
        assert near.mean() > 0.9, "the map covers the measured tissue"
        assert np.corrcoef(prediction.values(gene)[nearest][near], values[near])[0, 1] > least
        # the same map shifted by a few tiles is worse: positions are right, not only the overall level
        shifted = cKDTree(prediction.tiles.centre_yx + np.array([2200.0, 0.0])).query(centre)
        far = shifted[0] < 150
        assert (
            np.corrcoef(prediction.values(gene)[shifted[1]][far], values[far])[0, 1]
            < np.corrcoef(prediction.values(gene)[nearest][near], values[near])[0, 1]
        )


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
