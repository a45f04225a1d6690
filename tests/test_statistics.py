"""Statistics of all genes at once agree with those of each gene's own map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import napari_peka as peka
from napari_peka.config import PredictConfig
from napari_peka.core.errors import RegionError, SettingError, UnknownName
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.core.neighbours import neighbour_mean
from napari_peka.core.statistics import moments
from napari_peka.io.prediction import Prediction
from napari_peka.io.statistics import known_genes

GENES = ("UP", "DOWN", "WAVE", "NOISE", "FLAT")


def made(context_um=None, side=24, seed=0):
    """A map whose genes are known functions of place; one tile unread."""
    rng = np.random.default_rng(seed)
    tiles = TileTable.grid((side * 100, side * 100), (0.5, 0.5), TileSpec(100, 0.5))
    y, x = tiles.grid_yx.T
    own = np.column_stack([x / side, np.sin(x / 3) * np.cos(y / 3), rng.normal(size=len(tiles)), np.ones(len(tiles))])
    w = np.array([[1, -2, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], np.float32)
    if context_um is not None:
        w = np.concatenate([w, 0.5 * w[:, [2, 1, 0, 3, 4]]])
    ids = tuple(f"ENSG0000000000{i}" for i in range(5))
    pcc, ceiling = (np.array(v, np.float32) for v in ((0.6, 0.5, 0.4, 0.0, np.nan), (0.8, 0.9, 0.5, 0.1, np.nan)))
    head = GeneHead(w, np.arange(5, dtype=np.float32), GENES, "log1p CP10K", ids, pcc, context_um, ceiling)
    embeddings = own.astype(np.float16)
    embeddings[5] = np.nan
    ok = np.ones(len(tiles), bool)
    ok[5] = False
    return Prediction(tiles, embeddings, head, ok, {"slide": {"name": "s"}})


@pytest.mark.parametrize("context_um", [None, 120.0])
def test_the_table_of_genes_is_that_of_their_maps(context_um):
    prediction = made(context_um)
    table = peka.gene_table(prediction)
    assert list(table.index) == list(GENES)
    for gene in GENES:
        values = prediction.values(gene)[prediction.read_ok].astype(float)
        assert table.loc[gene, "mean"] == pytest.approx(values.mean(), abs=1e-3)
        assert table.loc[gene, "sd"] == pytest.approx(values.std(), abs=1e-3)
    assert list(table["share_of_attainable"])[:3] == pytest.approx([0.75, 0.5556, 0.8], abs=1e-3)
    assert table["share_of_attainable"].isna().tolist() == [False, False, False, True, True]
    assert table.loc["UP", "moran"] > 0.9
    assert np.isnan(table.loc["FLAT", "moran"])
    assert table.loc["UP", "gene_id"] == "ENSG00000000000"


def test_morans_i_is_scanpys():
    sc = pytest.importorskip("scanpy")
    prediction = made()
    rows = np.flatnonzero(prediction.read_ok)
    near = neighbour_mean(prediction.tiles.centre_um, 75).among(rows)
    matrix = sparse.csr_matrix(near._matrix.astype(float))
    matrix = (
        sparse.diags_array(1 / np.asarray(matrix.sum(1)).ravel()).tocsr() @ matrix
    )  # each row weighs 1, as in squidpy
    matrix = sparse.csr_matrix(matrix)
    values = prediction.head.matrix(prediction.embeddings)[rows][:, :4].T
    table = peka.gene_table(prediction)
    wanted = sc.metrics.morans_i(matrix, np.ascontiguousarray(values))
    np.testing.assert_allclose(table["moran"][:4], wanted, atol=2e-3)


@given(st.integers(0, 2**31), st.integers(3, 60), st.integers(1, 6))
def test_moments_are_those_of_the_values(seed, n, d):
    rng = np.random.default_rng(seed)
    x, w, b = rng.normal(3, 2, (n, d)).astype(np.float32), rng.normal(size=(d, 4)), rng.normal(size=4)
    near = neighbour_mean(rng.uniform(0, 10, (n, 2)), 4.0)
    m, y = moments(x, near), x.astype(float) @ w + b
    np.testing.assert_allclose(m.gene_mean(w, b), y.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(m.gene_variance(w), y.var(0), rtol=1e-5, atol=1e-6)
    linked = near.counts > 0
    if linked.any():
        z = y - y.mean(0)
        wanted = (z * near.mean(z))[linked].mean(0) / y.var(0)
        np.testing.assert_allclose(m.moran(w), wanted, rtol=1e-3, atol=1e-4)


def test_a_set_of_genes_is_one_score():
    prediction = made()
    score = peka.gene_set_score(prediction, ["UP", "wave", "ENSG00000000002", "UNHEARD"])
    ok = prediction.read_ok
    z = [(v - v[ok].mean()) / v[ok].std() for v in (prediction.values(g) for g in ("UP", "WAVE"))]
    np.testing.assert_allclose(score[ok], np.mean(z, 0)[ok], atol=2e-3)
    assert np.isnan(score[5])
    assert known_genes(prediction, ["up", "UP", "UNHEARD"]) == (["UP"], ["UNHEARD"])
    with pytest.raises(UnknownName, match="none of the 2 genes"):
        peka.gene_set_score(prediction, ["A", "B"])
    with pytest.raises(UnknownName, match="varies"):
        peka.gene_set_score(prediction, ["FLAT"])


def test_genes_are_ranked_by_what_two_regions_differ_in():
    prediction = made()
    left, right = shapely.box(0, 0, 1000, 2400), shapely.box(1400, 0, 2400, 2400)
    table = peka.compare_regions(prediction, right, left)
    assert set(table.index[:2]) == {"UP", "DOWN"}
    assert table.loc["UP", "cohens_d"] > 1 > -1 > table.loc["DOWN", "cohens_d"]
    x = prediction.tiles.centre_yx[:, 1]
    a, b = prediction.values("UP")[x > 1400], prediction.values("UP")[x < 1000]
    a, b = a[np.isfinite(a)].astype(float), b[np.isfinite(b)].astype(float)
    pooled = np.sqrt(((len(a)) * a.var() + len(b) * b.var()) / (len(a) + len(b) - 2))
    assert table.loc["UP", "cohens_d"] == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-2)
    rest = peka.compare_regions(prediction, right)
    assert rest.loc["UP", "mean_b"] > table.loc["UP", "mean_b"]  # the middle counts as well
    with pytest.raises(RegionError, match="share"):
        peka.compare_regions(prediction, left, shapely.box(0, 0, 1100, 2400))
    with pytest.raises(RegionError, match="the first region has 0 tiles"):
        peka.compare_regions(prediction, shapely.box(0, 0, 10, 10), right)
    x = prediction.tiles.centre_yx[:, 1]
    by_mask = peka.compare_regions(prediction, x > 1400, (x < 1000).tolist())
    np.testing.assert_allclose(by_mask["cohens_d"], table["cohens_d"])
    for wrong in ((x > 1400)[:10], x, ["a"] * len(x), "tumour"):
        with pytest.raises(RegionError, match=f"a region is a shapely polygon or {len(x)} bools"):
            peka.compare_regions(prediction, wrong)


def test_a_region_has_a_row_a_gene():
    prediction = made()
    regions = {"left": shapely.box(0, 0, 1000, 2400), "nowhere": shapely.box(-9, -9, -1, -1)}
    table = peka.region_table(prediction, regions, ["UP", "WAVE"])
    assert list(table["region"]) == ["left", "nowhere"] * 2
    values = prediction.values("UP")[(prediction.tiles.centre_yx[:, 1] < 1000) & prediction.read_ok]
    assert table.loc[0, "tiles"] == len(values)
    assert table.loc[0, "median"] == pytest.approx(np.median(values), abs=1e-4)
    assert table.loc[1, "tiles"] == 0
    assert pd.isna(table.loc[1, "mean"])


def test_gene_sets_are_read_from_gmt(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("HYPOXIA\thttps://x\tCA9\tVEGFA\n\nEMPTYDESC\t\tKRT8\n")
    assert peka.read_gene_sets(path) == {"HYPOXIA": ["CA9", "VEGFA"], "EMPTYDESC": ["KRT8"]}
    path.write_text("HYPOXIA CA9 VEGFA\n")
    with pytest.raises(SettingError, match=r"line 1: a set is NAME"):
        peka.read_gene_sets(path)
    path.write_text("\n")
    with pytest.raises(SettingError, match="holds no gene set"):
        peka.read_gene_sets(path)
    with pytest.raises(SettingError, match="cannot be read"):
        peka.read_gene_sets(tmp_path / "none.gmt")


def test_a_map_without_a_known_tile_says_so():
    prediction = made()
    prediction.embeddings[:] = np.nan
    with pytest.raises(SettingError, match="no tile of the map"):
        peka.gene_table(prediction)


def test_the_ceiling_of_a_model_is_in_its_results(tissue_tiff, tmp_path):
    with peka.open_slide(tissue_tiff) as slide:
        model = peka.load_model("demo")
        config = PredictConfig(find_tissue=False, stride_px=400, device="cpu")
        peka.predict(slide, model, output=tmp_path / "a.peka.zarr", region=shapely.box(0, 0, 1200, 1200), config=config)
    table = peka.gene_table(peka.read_prediction(tmp_path / "a.peka.zarr"))
    np.testing.assert_allclose(table["attainable_pcc"], model.attainable_pcc, rtol=1e-6)
    assert (table["share_of_attainable"].dropna() < 1.5).all()
