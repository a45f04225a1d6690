"""Exports, each opened by the library that owns the format, with coordinates checked."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import xml.etree.ElementTree as ET
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import shapely

import napari_peka as peka
from napari_peka import cli
from napari_peka.config import PredictConfig
from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import OutputMismatch, SettingError, StoreError, UnknownName
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io.export import FORMATS, export
from napari_peka.io.exports import base, spatial_data, tables
from napari_peka.io.exports.base import ANNOTATION, MARK, annotated
from napari_peka.io.figure import REGION_COLOUR
from napari_peka.io.prediction import RESEARCH_USE, Prediction
from napari_peka.io.regions import regions_by_name, write_regions
from napari_peka.io.trust import UNLIKE

GENES = ("KRT8", "CD3E")


@pytest.fixture(scope="module")
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as slide:
        yield slide


@pytest.fixture(scope="module")
def result(slide, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("result") / "case.peka.zarr"
    peka.predict(slide, tiny_model, output=out, config=PredictConfig(precision="fp32", stride_px=48))
    return out


@pytest.fixture(scope="module")
def prediction(result):
    made = peka.read_prediction(result)
    made.embeddings[3] = np.nan  # as a tile that could not be read
    made.read_ok[3] = False
    return made


@pytest.fixture
def regions(prediction):
    y, x = prediction.tiles.centre_yx.mean(0)
    return {"all": shapely.box(0, 0, 1e5, 1e5), "middle": shapely.box(x - 400, y - 400, x + 400, y + 400)}


def xy(prediction):
    return prediction.tiles.centre_yx[:, ::-1]


def test_anndata_goes_on_in_scanpy(prediction, regions, slide, tmp_path):
    sc = pytest.importorskip("scanpy")
    (path,) = export(prediction, "h5ad", tmp_path / "a.h5ad", genes=GENES, regions=regions, slide=slide)
    adata = anndata.read_h5ad(path)
    assert list(adata.var_names) == list(GENES)
    for gene in GENES:
        np.testing.assert_allclose(adata[:, gene].X.ravel(), prediction.values(gene), atol=1e-4)
    np.testing.assert_allclose(adata.obsm["spatial"], xy(prediction), atol=1e-9)
    assert set(adata.obs[ANNOTATION].cat.categories) == {"all", "middle"}
    assert adata.obs[ANNOTATION].notna().all()
    (library,) = adata.uns["spatial"]
    hires = adata.uns["spatial"][library]["images"]["hires"]
    scale = adata.uns["spatial"][library]["scalefactors"]["tissue_hires_scalef"]
    assert abs(hires.shape[0] / scale - slide.shape[0]) < 0.5
    assert adata.uns["napari_peka"]["unit"] == prediction.unit
    table = sc.get.obs_df(adata, keys=["KRT8", ANNOTATION])
    means = table.groupby(ANNOTATION, observed=True)["KRT8"].mean()
    inside = np.array(annotated(prediction.tiles.centre_yx, regions)) == "middle"
    assert means["middle"] == pytest.approx(np.nanmean(prediction.values("KRT8")[inside]), abs=1e-4)


def test_spatialdata_opens_again_and_its_shapes_are_where_the_tiles_are(prediction, regions, slide, tmp_path):
    sd = pytest.importorskip("spatialdata")
    (path,) = export(prediction, "spatialdata", tmp_path / "a.zarr", genes=GENES, regions=regions, slide=slide)
    data = sd.read_zarr(path)
    assert {name for _, name, _ in data.gen_elements()} == {"tiles", "annotations", "overview", "expression"}
    centres = data["tiles"].geometry.centroid
    np.testing.assert_allclose(np.column_stack([centres.x, centres.y]), xy(prediction), atol=1e-6)
    h, w = prediction.tiles.spec.stride0(prediction.tiles.slide_mpp)
    np.testing.assert_allclose(data["tiles"].area, h * w)
    um = sd.transform(data["tiles"], to_coordinate_system="um").geometry.centroid
    np.testing.assert_allclose(np.column_stack([um.y, um.x]), prediction.tiles.centre_um, atol=1e-6)
    table = data["expression"]
    matched = sd.match_table_to_element(data, element_name="tiles", table_name="expression")
    assert matched.n_obs == len(prediction.tiles)
    np.testing.assert_allclose(table[:, "CD3E"].X.ravel(), prediction.values("CD3E"), atol=1e-4)
    extent = sd.get_extent(data["overview"], coordinate_system="global")
    assert extent["x"] == pytest.approx((0, slide.shape[1]), abs=0.5)
    assert extent["y"] == pytest.approx((0, slide.shape[0]), abs=0.5)
    assert data["annotations"].loc["middle"].geometry.equals(regions["middle"])


def test_ome_zarr_is_read_by_its_own_reader_and_lies_in_um(prediction, tmp_path):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    (path,) = export(prediction, "ome-zarr", tmp_path, genes=GENES)
    assert path.name.endswith(".ome.zarr")
    (node, *_) = Reader(parse_url(path))()
    assert (path / "0" / "1" / "0" / "0").is_file()  # chunks lie in folders, as the format has it
    data = np.asarray(node.data[0])
    raster = prediction.raster("CD3E")
    np.testing.assert_allclose(data[1], raster.data, atol=1e-4)
    assert [a["name"] for a in node.metadata["axes"]] == ["c", "y", "x"]
    assert node.metadata["channel_names"] == [f"{g} ({prediction.unit})" for g in GENES]
    transforms = {t["type"]: t for t in node.metadata["coordinateTransformations"][0]}
    scale, first = (np.array(transforms[k][k][1:]) for k in ("scale", "translation"))
    rows = prediction.tiles.grid_yx - prediction.tiles.grid_yx.min(0)
    # the centre of the first level-0 pixel is at 0 µm
    placed = (rows * scale + first) / prediction.tiles.slide_mpp + 0.5
    assert np.abs(placed - prediction.tiles.centre_yx).max() < 0.5


def test_ome_tiff_says_size_place_and_channels(prediction, tmp_path):
    import tifffile

    (path,) = export(prediction, "ome-tiff", tmp_path / "a.ome.tif", genes=GENES)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        np.testing.assert_allclose(file.asarray()[0], prediction.raster("KRT8").data, atol=1e-4)
        root = ET.fromstring(file.ome_metadata)
    pixels = next(e for e in root.iter() if e.tag.endswith("Pixels"))
    names = [e.attrib["Name"] for e in root.iter() if e.tag.endswith("Channel")]
    planes = [e.attrib for e in root.iter() if e.tag.endswith("}Plane")]
    scale, first = prediction.raster("KRT8").place_um(prediction.tiles.slide_mpp)
    assert (float(pixels.attrib["PhysicalSizeY"]), float(pixels.attrib["PhysicalSizeX"])) == pytest.approx(scale)
    assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
    assert names == [f"{g} ({prediction.unit})" for g in GENES]
    assert [(float(p["PositionY"]), float(p["PositionX"])) for p in planes] == [pytest.approx(first)] * 2


def test_geojson_has_simple_closed_rings_where_the_tiles_are(prediction, regions, tmp_path):
    (path,) = export(prediction, "geojson", tmp_path / "a.geojson", genes=GENES, regions=regions)
    features = json.loads(path.read_text())["features"]
    kinds = [f["properties"]["objectType"] for f in features]
    assert kinds == ["annotation"] * 2 + ["tile"] * len(prediction.tiles)
    tiles = features[2:]
    made = [shapely.geometry.shape(f["geometry"]) for f in tiles]
    assert all(g.is_valid and g.exterior.is_simple and g.exterior.is_ring for g in made)
    assert all(f["geometry"]["coordinates"][0][0] == f["geometry"]["coordinates"][0][-1] for f in tiles)
    centres = np.array([(g.centroid.x, g.centroid.y) for g in made])
    assert np.abs(centres - xy(prediction)).max() < 0.02
    assert len({f["id"] for f in features}) == len(features)
    key = f"KRT8 ({prediction.unit})"
    said = [f["properties"]["measurements"].get(key, np.nan) for f in tiles]
    np.testing.assert_allclose(said, prediction.values("KRT8"), atol=1e-4)
    assert tiles[3]["properties"]["measurements"] == {}
    assert tiles[0]["properties"]["metadata"][ANNOTATION] in regions
    back = regions_by_name(path)  # tiles are areas too, but the names are there
    assert back["middle"].equals(regions["middle"])


def test_csv_is_a_row_a_tile(prediction, regions, tmp_path):
    (path,) = export(prediction, "csv", tmp_path / "a.csv", genes=GENES, regions=regions)
    table = pd.read_csv(path)
    assert list(table.columns) == ["tile", "x", "y", "x_um", "y_um", "row", "col", "read_ok", ANNOTATION, *GENES]
    np.testing.assert_allclose(table[["x", "y"]], xy(prediction), atol=0.01)
    np.testing.assert_allclose(table[["y_um", "x_um"]], prediction.tiles.centre_um, atol=0.01)
    np.testing.assert_allclose(table["KRT8"], prediction.values("KRT8"), atol=1e-4)
    assert not table["read_ok"][3]
    assert np.isnan(table["KRT8"][3])


SETS = {"Epithelium (some)": ["KRT8", "erbb2", "NOSUCH"], "Epithelium/some": ["KRT8"]}


@pytest.fixture(scope="module")
def scores(prediction):
    return np.stack([peka.gene_set_score(prediction, genes) for genes in SETS.values()], 1)


def test_scores_of_sets_are_columns_of_tables(prediction, scores, slide, tmp_path):
    (path,) = export(prediction, "csv", tmp_path / "a.csv", genes=GENES, sets=SETS)
    table = pd.read_csv(path)
    named = ["score_Epithelium_some", "score_Epithelium_some_"]
    assert list(table.columns)[-4:] == [*GENES, *named]
    np.testing.assert_allclose(table[named], scores, atol=1e-4)
    (path,) = export(prediction, "h5ad", tmp_path / "a.h5ad", sets=SETS)
    adata = anndata.read_h5ad(path)
    assert list(adata.var_names) == list(prediction.genes)
    np.testing.assert_allclose(adata.obs[named], scores, atol=1e-4)
    told = adata.uns["napari_peka"]["gene_sets"]
    assert told[named[0]]["name"] == "Epithelium (some)"
    assert list(told[named[0]]["genes"]) == ["KRT8", "ERBB2"]
    assert "gene_sets" not in prediction.record
    sd = pytest.importorskip("spatialdata")
    (path,) = export(prediction, "spatialdata", tmp_path / "a.zarr", genes=GENES, sets=SETS, slide=slide)
    np.testing.assert_allclose(sd.read_zarr(path)["expression"].obs[named], scores, atol=1e-4)


def test_scores_of_sets_are_channels_measurements_and_figures(prediction, scores, slide, tmp_path):
    import tifffile

    (path,) = export(prediction, "ome-tiff", tmp_path / "a.ome.tif", genes=GENES[:1], sets=SETS)
    with tifffile.TiffFile(path) as file:
        data, root = file.asarray(), ET.fromstring(file.ome_metadata)
    names = [e.attrib["Name"] for e in root.iter() if e.tag.endswith("Channel")]
    assert names == [f"KRT8 ({prediction.unit})", "Epithelium (some) (mean z)", "Epithelium/some (mean z)"]
    np.testing.assert_allclose(data[1], prediction.tiles.raster(scores[:, 0]).data, atol=1e-4)
    (path,) = export(prediction, "geojson", tmp_path / "a.geojson", sets=SETS)  # no genes unless they are named
    features = json.loads(path.read_text())["features"]
    assert list(features[0]["properties"]["measurements"]) == names[1:]
    assert features[3]["properties"]["measurements"] == {}  # not read
    figures = export(prediction, "svg", tmp_path / "a.svg", sets=SETS, slide=slide)
    assert [p.name for p in figures] == ["a.Epithelium (some).svg", "a.Epithelium%2Fsome.svg"]
    (figure,) = export(prediction, "png", tmp_path / "b.png", genes=[], sets=dict([next(iter(SETS.items()))]))
    assert figure.name == "b.png"
    with pytest.raises(UnknownName, match=r"none of the genes of the set X \(NOSUCH"):
        export(prediction, "csv", tmp_path / "c.csv", sets={"X": ["NOSUCH"]})
    assert not (tmp_path / "c.csv").exists()


@pytest.mark.parametrize("with_slide", [True, False])
def test_figures_with_and_without_the_slide(prediction, slide, tmp_path, with_slide):
    from PIL import Image

    shown = slide if with_slide else None
    (png,) = export(prediction, "png", tmp_path / "a.png", genes=GENES[:1], slide=shown)
    with Image.open(png) as image:
        assert image.width > image.height if with_slide else image.width < 2 * image.height
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10
    regions = {"tumour": shapely.box(900, 900, 1900, 1700)}
    (drawn,) = export(prediction, "svg", tmp_path / "r.svg", genes=GENES[:1], slide=shown, regions=regions)
    assert drawn.read_text().count(REGION_COLOUR) >= 2 * (1 + with_slide)  # outline and name, on slide and map
    both = export(prediction, "svg", tmp_path / "b.svg", genes=GENES, slide=shown)
    assert [p.name for p in both] == ["b.KRT8.svg", "b.CD3E.svg"]
    assert ET.parse(both[0]).getroot().tag.endswith("svg")


def test_a_folder_gets_files_named_after_the_slide_and_without_genes_the_best_are_taken(prediction, tmp_path):
    assert [p.name for p in export(prediction, "png", tmp_path / "new" / "folder")] == ["tissue.ERBB2.png"]
    (path,) = export(prediction, "ome-tiff", tmp_path)
    import tifffile

    assert tifffile.imread(path).shape[0] == len(prediction.genes)
    (path,) = prediction.export(tmp_path, "csv")
    assert path.name == "tissue.csv"
    assert list(pd.read_csv(path).columns)[-5:] == list(prediction.genes)


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_what_is_there_is_replaced_when_told_and_else_left_alone(prediction, tmp_path, to):
    if to in ("spatialdata", "ome-zarr"):
        pytest.importorskip("spatialdata")
    target = tmp_path / f"a{FORMATS[to].endings[0]}"
    export(prediction, to, target, genes=GENES[:1])
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputMismatch, match="is there already"):
        export(prediction, to, target, genes=GENES[1:])
    export(prediction, to, target, genes=GENES[1:], overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("to", ["spatialdata", "ome-zarr"])
def test_a_folder_of_somebody_else_is_never_replaced(prediction, result, tmp_path, to):
    pytest.importorskip("spatialdata")
    with pytest.raises(OutputMismatch, match="is no export of napari-peka"):
        export(prediction, to, result, genes=GENES, overwrite=True)  # not even the result itself
    assert peka.read_prediction(result).genes == prediction.genes
    thesis = tmp_path / "thesis.zarr"
    thesis.mkdir()
    (thesis / "thesis.docx").write_text("years of work")
    with pytest.raises(OutputMismatch, match="is not replaced"):
        export(prediction, to, thesis, genes=GENES, overwrite=True)
    assert (thesis / "thesis.docx").exists()


@pytest.fixture(params=[None, 100.0], ids=["alone", "context"])
def wide(request, monkeypatch):
    """A map of more tiles than a chunk has and more genes than a chunk of a file, neither in whole multiples."""
    monkeypatch.setattr(base, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(tables, "_GENES", 100)
    monkeypatch.setattr(spatial_data, "_GENES", 100)
    rng = np.random.default_rng(0)
    tiles = TileTable.grid((36 * 64, 37 * 64), (0.5, 0.5), TileSpec(64, 0.5))
    d, names = 24, tuple(f"GENE{i}" for i in range(331))
    weights = rng.normal(size=(d if request.param is None else 2 * d, len(names))).astype(np.float32)
    head = GeneHead(weights, rng.normal(size=len(names)).astype(np.float32), names, "log1p CP10K", (), None,
                    request.param)  # fmt: skip
    embeddings = rng.normal(size=(len(tiles), d)).astype(np.float16)
    read_ok = np.ones(len(tiles), bool)
    for i in (0, base.ROWS - 1, base.ROWS, len(tiles) - 1):  # at the ends of chunks
        embeddings[i], read_ok[i] = np.nan, False
    return Prediction(tiles, embeddings, head, read_ok, {"slide": {"name": "wide"}})


def values_of(prediction):
    return np.stack([prediction.values(gene) for gene in prediction.genes], 1)


@pytest.mark.parametrize("to", ["h5ad", "spatialdata", "csv"])
def test_tables_written_by_chunks_have_every_value_at_its_place(wide, to, tmp_path):
    (path,) = export(wide, to, tmp_path / f"a{FORMATS[to].endings[0]}", sets={"S": ["GENE3", "GENE330"]})
    if to == "csv":
        table = pd.read_csv(path)
        x, score, names = table[list(wide.genes)].to_numpy(), table["score_S"], table["tile"]
    else:
        if to == "h5ad":
            adata = anndata.read_h5ad(path)
        else:
            adata = pytest.importorskip("spatialdata").read_zarr(path)["expression"]
        assert list(adata.var_names) == list(wide.genes)
        assert adata.X.dtype == np.float32
        x, score, names = adata.X, adata.obs["score_S"], adata.obs_names
    wanted = values_of(wide)
    assert list(names) == list(wide.tiles.names)
    assert np.isnan(wanted).any()
    size = np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(x, wanted, rtol=0, atol=size * (1e-6 if to != "csv" else 1e-5))
    np.testing.assert_allclose(score, peka.gene_set_score(wide, ["GENE3", "GENE330"]), atol=1e-5)


def test_a_gene_of_a_file_is_read_without_the_others(wide, tmp_path):
    (path,) = export(wide, "h5ad", tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(path, backed="r")
    np.testing.assert_allclose(backed[:, "GENE330"].X.ravel(), wide.values("GENE330"), atol=1e-5)
    backed.file.close()


def test_csv_can_be_zipped(wide, tmp_path):
    both = [export(wide, "csv", tmp_path / name)[0] for name in ("a.csv", "a.csv.gz")]
    pd.testing.assert_frame_equal(*(pd.read_csv(path) for path in both))
    assert both[1].stat().st_size < both[0].stat().st_size / 1.5


class Told(JobProgress):
    """Keeps what it is told, and does something at the second report."""

    def __init__(self, then=None):
        super().__init__()
        self.seen, self.then = [], then

    def advance(self, n=1, **metrics):
        super().advance(n, **metrics)
        self.seen.append(self.snapshot())
        if len(self.seen) == 2 and self.then is not None:
            self.then(self)


CHUNKED = ["h5ad", "spatialdata", "csv", "geojson", "ome-zarr", "ome-tiff"]


@pytest.mark.parametrize("to", CHUNKED)
def test_an_export_says_how_far_it_is(wide, to, tmp_path):
    if to in ("spatialdata", "ome-zarr"):
        pytest.importorskip("spatialdata")
    told = Told()
    export(wide, to, tmp_path / f"a{FORMATS[to].endings[0]}", progress=told)
    n = 20 if to.startswith("ome") else len(wide.tiles)
    assert told.seen[-1].done == told.seen[-1].total == n
    assert len(told.seen) > 2


def full(_progress):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("then", "error", "words"),
    [(JobProgress.cancel, Cancelled, "stopped"), (full, StoreError, "the disk is full")],
    ids=["cancelled", "full disk"],
)
@pytest.mark.parametrize("to", CHUNKED)
def test_an_export_that_stops_halfway_leaves_nothing(wide, to, then, error, words, tmp_path):
    if to in ("spatialdata", "ome-zarr"):
        pytest.importorskip("spatialdata")
    with pytest.raises(error, match=words):
        export(wide, to, tmp_path / f"a{FORMATS[to].endings[0]}", progress=Told(then))
    assert not list(tmp_path.iterdir())


def test_what_will_not_fit_is_not_begun(wide, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StoreError, match=r"takes about 1\.8 MB, and 1\.0 MB are free there; free some.*\(--genes\)"):
        export(wide, "h5ad", tmp_path / "new" / "a.h5ad")
    assert not list(tmp_path.iterdir())
    assert export(wide, "h5ad", tmp_path / "a.h5ad", genes=["GENE1"])


@pytest.fixture
def doubtful(wide):
    """The same map with intervals of all genes, a spread a tile, and how unlike the training data each tile is."""
    rng = np.random.default_rng(1)
    g, n = len(wide.genes), len(wide.tiles)
    quantiles = np.sort(rng.normal(size=(4, g)), 0).astype(np.float32)
    ood = np.where(wide.read_ok, rng.uniform(0, 100, n), np.nan).astype(np.float32)
    pcc = np.linspace(-0.2, 0.8, g).astype(np.float32)
    head = dataclasses.replace(
        wide.head, pcc=pcc, pcc_low=pcc - 0.1, pcc_high=pcc + 0.1, attainable_pcc=np.full(g, 0.9, np.float32),
        baseline_pcc_high=np.full(g, 0.3, np.float32),
    )  # fmt: skip
    return dataclasses.replace(
        wide, head=head, ood=ood, spread=(1 + rng.random(n)).astype(np.float32),
        intervals=Intervals(np.array([0.025, 0.05, 0.95, 0.975]), quantiles, 0.0),
    )  # fmt: skip


def ends_of(prediction):
    both = [prediction.interval(gene) for gene in prediction.genes]
    return [np.stack(end, 1) for end in zip(*both)]


@pytest.mark.parametrize("to", ["h5ad", "spatialdata"])
def test_tables_carry_the_doubt_of_every_value(doubtful, to, tmp_path):
    (path,) = export(doubtful, to, tmp_path / f"a{FORMATS[to].endings[0]}")
    if to == "h5ad":
        adata = anndata.read_h5ad(path)
    else:
        adata = pytest.importorskip("spatialdata").read_zarr(path)["expression"]
    np.testing.assert_allclose(adata.X, values_of(doubtful), rtol=0, atol=1e-4)
    for name, wanted in zip(("lower", "upper"), ends_of(doubtful)):
        assert adata.layers[name].dtype == np.float32
        np.testing.assert_allclose(adata.layers[name], wanted, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(adata.obs["ood"], doubtful.ood)
    np.testing.assert_array_equal(adata.obs["spread"], doubtful.spread)
    np.testing.assert_array_equal(adata.obs["read_ok"], doubtful.read_ok)
    for name, values in doubtful.head.measured.items():
        np.testing.assert_array_equal(adata.var[name], values)
    np.testing.assert_array_equal(adata.var["predictable"], doubtful.head.pcc > 0.3)
    told = adata.uns["napari_peka"]
    assert told["notice"] == RESEARCH_USE
    assert told["interval_level"] == pytest.approx(0.9)
    # what was not written follows from what was, as the documentation says
    k = np.flatnonzero(np.isclose(told["intervals"]["probabilities"], 0.05))[0]
    lower = adata.X + adata.obs["spread"].to_numpy()[:, None] * adata.varm["peka_residuals"][:, k]
    np.testing.assert_allclose(np.maximum(lower, told["intervals"]["floor"]), adata.layers["lower"], atol=1e-4)


@pytest.mark.parametrize("to", ["csv", "geojson"])
def test_rows_of_text_carry_the_doubt_of_every_value(doubtful, to, tmp_path):
    genes = ("GENE3", "GENE330")
    (path,) = export(doubtful, to, tmp_path / f"a.{to}", genes=genes, sets={"S": ["GENE3"]})
    low, high = doubtful.interval("GENE330")
    if to == "csv":
        table = pd.read_csv(path)
        assert list(table.columns)[7:] == [
            "read_ok", "ood", "spread", *(f"{g}{end}" for g in genes for end in ("", "_lower", "_upper")), "score_S",
        ]  # fmt: skip
        ood, lower, upper = (table[c] for c in ("ood", "GENE330_lower", "GENE330_upper"))
    else:
        document = json.loads(path.read_text())
        assert document[MARK]["notice"] == RESEARCH_USE
        assert document[MARK]["interval_level"] == pytest.approx(0.9)
        rows = pd.DataFrame([f["properties"]["measurements"] for f in document["features"]])
        keys = (UNLIKE, *(f"GENE330 {end} (log1p CP10K)" for end in ("lower", "upper")))
        ood, lower, upper = (rows[c] for c in keys)
        assert document["features"][0]["properties"]["measurements"] == {}, "a tile that could not be read"
    np.testing.assert_allclose(ood, doubtful.ood, atol=0.01)
    np.testing.assert_allclose(lower, low, atol=1e-3)
    np.testing.assert_allclose(upper, high, atol=1e-3)


def test_a_csv_is_described_beside_it(doubtful, tmp_path):
    """In the words of W3C's CSV on the Web, since a CSV has no place for units, trust or a notice."""
    doubtful.record["model"] = {"name": "m", "pcc_split": "sections left out in turn"}
    (path,) = export(doubtful, "csv", tmp_path / "a.csv", genes=["GENE3", "GENE330"], sets={"S": ["GENE3"]})
    described = json.loads((tmp_path / "a.csv-metadata.json").read_text("utf-8"))
    assert described["@context"] == "http://www.w3.org/ns/csvw"
    assert described["url"] == "a.csv"
    assert described["dc:description"] == RESEARCH_USE
    columns = described["tableSchema"]["columns"]
    assert [c["titles"] for c in columns] == list(pd.read_csv(path).columns)
    told = {c["titles"]: c.get("dc:description", "") for c in columns}
    assert told["GENE330"].startswith("predicted expression of GENE330, log1p CP10K; held-out PCC 0.80 (0.70 to 0.90)")
    assert "not shown to be predicted" in told["GENE3"]
    assert told["GENE3_lower"] == "lower end of the interval of 90% of the measured values of GENE3, log1p CP10K"
    (note,) = described["notes"]
    assert note[MARK]["held_out"] == "sections left out in turn"
    assert note[MARK]["genes"]["GENE330"]["predictable"] is True
    with pytest.raises(OutputMismatch, match=r"a\.csv is there already"):
        export(doubtful, "csv", path)
    path.unlink()
    export(doubtful, "csv", path)  # its description was left over
    path.unlink()
    (tmp_path / "a.csv-metadata.json").write_text("{}")
    with pytest.raises(OutputMismatch, match=r"a\.csv-metadata\.json is there already"):
        export(doubtful, "csv", path)
    assert not path.exists()


def test_an_export_says_that_intervals_were_fitted_to_measured_spots(doubtful, tmp_path):
    fitted = {"section": "S1", "spots": 40, "genes": 331}
    doubtful.record["intervals"] = {"probabilities": [0.05, 0.95], "floor": 0.0, "fitted": fitted}
    export(doubtful, "csv", tmp_path / "a.csv", genes=["GENE3"])
    described = json.loads((tmp_path / "a.csv-metadata.json").read_text("utf-8"))
    assert described["dc:description"] == f"{RESEARCH_USE} Intervals fitted to 40 spots of S1."
    assert described["notes"][0][MARK]["intervals_fitted_to"] == fitted
    (path,) = export(doubtful, "h5ad", tmp_path / "a.h5ad", genes=["GENE3"])
    assert anndata.read_h5ad(path).uns["napari_peka"]["intervals"]["fitted_to"] == "Intervals fitted to 40 spots of S1"
    (path,) = export(doubtful, "geojson", tmp_path / "a.geojson", genes=["GENE3"])
    assert json.loads(path.read_text())[MARK]["intervals_fitted_to"] == fitted


@pytest.mark.parametrize("to", ["ome-zarr", "ome-tiff", "geojson"])
def test_what_has_no_columns_says_too_how_far_to_believe_a_gene(doubtful, to, tmp_path):
    doubtful.record["model"] = {"name": "m", "pcc_split": "sections left out in turn"}
    (path,) = export(doubtful, to, tmp_path, genes=["GENE3", "GENE330"])
    if to == "ome-tiff":
        import tifffile

        with tifffile.TiffFile(path) as file:
            (said,) = [e.text for e in ET.fromstring(file.ome_metadata).iter() if e.tag.endswith("}Description")]
        assert said.splitlines()[0] == RESEARCH_USE
        assert "GENE330: held-out PCC 0.80 (0.70 to 0.90), good" in said
        assert "GENE3: held-out PCC -0.19 (-0.29 to -0.09), not shown to be predicted" in said
        assert said.endswith("Held out: sections left out in turn")
        return
    if to == "ome-zarr":
        import zarr

        pytest.importorskip("ome_zarr")
        told = zarr.open_group(str(path), mode="r").attrs[MARK]
    else:
        told = json.loads(path.read_text())[MARK]
    assert told["held_out"] == "sections left out in turn"
    assert told["genes"]["GENE330"] == {
        "pcc": 0.8, "pcc_low": 0.7, "pcc_high": 0.9, "attainable_pcc": 0.9, "baseline_pcc_high": 0.3,
        "predictable": True,
    }  # fmt: skip
    assert told["genes"]["GENE3"]["predictable"] is False


def test_unproven_genes_are_not_taken_where_nobody_names_genes(doubtful, tmp_path):
    """The best gene by its correlation alone may be one that colour or chance predict as well."""
    g = len(doubtful.genes)
    high = np.where(np.arange(g) == g - 1, 0.9, 0.3).astype(np.float32)
    told = dataclasses.replace(doubtful, head=dataclasses.replace(doubtful.head, baseline_pcc_high=high))
    (path,) = export(told, "geojson", tmp_path)
    measured = next(m for f in json.loads(path.read_text())["features"] if (m := f["properties"]["measurements"]))
    named = [name.split()[0] for name in measured if name.endswith(f" ({told.unit})")]
    assert list(dict.fromkeys(named)) == [f"GENE{i}" for i in range(g - 2, g - 22, -1)]


@pytest.mark.parametrize("to", ["ome-zarr", "ome-tiff"])
def test_images_show_what_is_unlike_and_intervals_when_asked(doubtful, to, tmp_path):
    gene, unit = "GENE7", "log1p CP10K"
    ends = [f"{gene} lower ({unit})", f"{gene} upper ({unit})"]
    for intervals, wanted in ((None, []), (True, ends)):
        (path,) = export(doubtful, to, tmp_path, genes=[gene], intervals=intervals, overwrite=True)
        if to == "ome-zarr":
            import zarr

            pytest.importorskip("ome_zarr")
            root = zarr.open_group(str(path), mode="r")
            data, labels = root["0"][:], [c["label"] for c in root.attrs["omero"]["channels"]]
            assert root.attrs[MARK]["notice"] == RESEARCH_USE
        else:
            import tifffile

            with tifffile.TiffFile(path) as file:
                data, root = file.asarray(), ET.fromstring(file.ome_metadata)
            labels = [e.attrib["Name"] for e in root.iter() if e.tag.endswith("Channel")]
            (said,) = [e.text for e in root.iter() if e.tag.endswith("}Description")]
            assert said.startswith(RESEARCH_USE)
        assert labels == [f"{gene} ({unit})", *wanted, UNLIKE]
        np.testing.assert_array_equal(data[-1], doubtful.tiles.raster(doubtful.ood).data)
        for image, end in zip(data[1:-1], doubtful.interval(gene)):
            np.testing.assert_allclose(image, doubtful.tiles.raster(end).data, atol=1e-5)


def test_intervals_are_written_where_they_find_room_or_are_asked_for(doubtful, prediction, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_peka.io.export.MOST_WITH_INTERVALS", 300)
    told = JobProgress()
    (path,) = export(doubtful, "h5ad", tmp_path / "a.h5ad", progress=told)
    adata = anndata.read_h5ad(path)
    assert not adata.layers
    assert "331 genes are written without the ends of their intervals" in told.notes[0]
    assert {"spread", "ood"} <= set(adata.obs)
    assert adata.varm["peka_residuals"].shape == (331, 4)
    for genes, intervals, wanted in ((None, True, True), (["GENE1"], None, True), (["GENE1"], False, False)):
        (path,) = export(doubtful, "h5ad", path, genes=genes, intervals=intervals, overwrite=True)
        assert set(anndata.read_h5ad(path).layers) == ({"lower", "upper"} if wanted else set())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    with pytest.raises(StoreError, match=r"takes about 5\.3 MB"):
        export(doubtful, "h5ad", tmp_path / "b.h5ad", intervals=True)
    with pytest.raises(SettingError, match="says nothing of its errors"):
        export(prediction, "csv", tmp_path / "b.csv", intervals=True)
    with pytest.raises(SettingError, match=r"a figure \(png\) shows no intervals"):
        export(doubtful, "png", tmp_path / "b.png", intervals=True)
    (path,) = export(prediction, "h5ad", tmp_path / "old.h5ad", genes=GENES)
    assert not anndata.read_h5ad(path).layers


@pytest.mark.parametrize("to", ["png", "svg"])
def test_figures_say_what_they_are_not_for(prediction, to, tmp_path):
    (path,) = export(prediction, to, tmp_path / f"a.{to}", genes=["KRT8"])
    if to == "png":
        from PIL import Image

        with Image.open(path) as image:
            assert image.info["Disclaimer"] == RESEARCH_USE
    else:
        said = [e.text for e in ET.parse(path).iter() if e.tag.endswith("}description")]
        assert said == [RESEARCH_USE]


def test_bad_input_is_one_sentence(prediction, tmp_path, monkeypatch):
    with pytest.raises(SettingError, match="did you mean geojson"):
        export(prediction, "geojsn", tmp_path)
    with pytest.raises(UnknownName, match="did you mean KRT8"):
        export(prediction, "csv", tmp_path, genes=["KRT88"])
    with pytest.raises(SettingError, match="no gene was named"):
        export(prediction, "csv", tmp_path, genes=[])
    monkeypatch.setitem(__import__("sys").modules, "ome_zarr.writer", None)
    with pytest.raises(SettingError, match=r"pip install 'napari-peka\[export\]'"):
        export(prediction, "ome-zarr", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_ending_of_another_format_is_refused(prediction, tmp_path):
    with pytest.raises(SettingError, match=r"a.csv is a name for csv, not for h5ad: end it in .h5ad"):
        export(prediction, "h5ad", tmp_path / "a.csv", genes=GENES)
    (tmp_path / "results.csv").mkdir()  # a folder may be called as it likes
    assert export(prediction, "h5ad", tmp_path / "results.csv", genes=GENES)[0].parent.name == "results.csv"


def test_of_regions_within_regions_the_smallest_counts():
    outer, inner = shapely.box(0, 0, 100, 100), shapely.box(10, 20, 30, 40)
    centre_yx = np.array([[30.0, 20.0], [20.0, 60.0], [200.0, 20.0], [30.0, 5.0]])
    assert annotated(centre_yx, {"inner": inner, "outer": outer}) == ["inner", "outer", None, "outer"]
    assert annotated(centre_yx, {}) == [None] * 4


def run(*args, code=0):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in args])
    assert ended.value.code == code, err.getvalue()
    return out.getvalue(), err.getvalue().splitlines()


def test_the_command_writes_and_says_what(result, regions, tissue_tiff, tmp_path):
    write_regions(tmp_path / "r.geojson", regions)
    args = ["export", result, "--to", "h5ad", "-o", tmp_path / "a.h5ad", "--genes", "KRT8, CD3E"]
    out, _ = run(*args, "--regions", tmp_path / "r.geojson", "--slide", tissue_tiff, "--json")
    data = json.loads(out)
    assert set(data) == {"result", "to", "files", "tiles", "unit", "warnings"}
    assert data["files"] == [str(tmp_path / "a.h5ad")]
    assert list(anndata.read_h5ad(tmp_path / "a.h5ad").var_names) == ["KRT8", "CD3E"]
    _, err = run(*args, code=2)
    assert err[-1].startswith("error: ")
    assert "is there already" in err[-1]
    (tmp_path / "s.gmt").write_text("MINE\t\tKRT8\tERBB2\n")
    run("export", result, "--to", "geojson", "-o", tmp_path / "all.geojson", "--genes", "all")
    first = json.loads((tmp_path / "all.geojson").read_text())["features"][0]
    assert len(first["properties"]["measurements"]) >= len(peka.read_prediction(result).genes)
    run("export", result, "--to", "csv", "-o", tmp_path / "s.csv", "--gene-sets", f"{tmp_path / 's.gmt'}, MINE", code=2)
    run("export", result, "--to", "csv", "-o", tmp_path / "s.csv", "--gene-sets", tmp_path / "s.gmt")
    assert pd.read_csv(tmp_path / "s.csv").columns[-1] == "score_MINE"
    _, err = run("export", result, "--to", "csv", "-o", tmp_path / "t.csv", "--gene-sets", "pam5", code=2)
    assert err[-1].endswith("PAM50, PAM50 proliferation; did you mean PAM50?")
    _, err = run("export", result, "--to", "xlsx", "-o", tmp_path / "x", code=2)
    assert "there are h5ad, spatialdata" in err[-1]
    _, err = run("export", tmp_path / "none.peka.zarr", "--to", "csv", "-o", tmp_path / "x", code=2)
    assert "there is no result" in err[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.h5ad", "all.geojson", "r.geojson", "s.csv", "s.csv-metadata.json", "s.gmt",
    ]  # fmt: skip
