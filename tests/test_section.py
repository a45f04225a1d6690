"""Paired sections: every layout gives the same spots, counts and µm; what does not belong together is said."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from napari_peka.core.errors import PekaError, SectionError, SlideError
from napari_peka.core.geometry import TileSpec
from napari_peka.core.progress import JobProgress
from napari_peka.io.sample import sample_genes, sample_section
from napari_peka.io.section import Section, read_section
from napari_peka.io.sections.matrix import Matrix, read_h5
from napari_peka.io.sections.spaceranger import read_positions
from section_files import (
    COUNTS,
    POSITIONS,
    as_anndata,
    change_counts,
    change_scales,
    copied,
    positions,
    write_hd,
    write_mtx,
    write_positions,
)


@pytest.fixture(scope="session")
def outs(tmp_path_factory) -> Path:
    """A section of 12 × 12 spots, 109 under tissue, at 1 µm/px."""
    return sample_section(tmp_path_factory.mktemp("sections"), name="S1", spots=(12, 12), mpp=1.0)


@pytest.fixture(scope="session")
def truth(outs) -> Section:
    """That section as it is read."""
    with read_section(outs, patient="P") as section:
        return section


def same(section: Section, truth: Section, scale: float = 1.0) -> None:
    assert list(section.adata.obs_names) == list(truth.adata.obs_names)
    assert section.genes == truth.genes
    assert (section.counts != truth.counts).nnz == 0
    np.testing.assert_allclose(section.adata.obsm["spatial"], truth.adata.obsm["spatial"] * scale)
    np.testing.assert_allclose(section.centre_um, truth.centre_um, rtol=0.01)


# -- Space Ranger ------------------------------------------------------------------------------------------------


def test_a_visium_section_is_what_its_files_say(outs, truth):
    table = positions(outs).set_index("barcode")
    under = table[table["in_tissue"] == 1]
    assert sorted(truth.adata.obs_names) == sorted(under.index)
    table = table.loc[truth.adata.obs_names]
    # the trap: the last two columns are (row, column), that is (y, x)
    np.testing.assert_array_equal(truth.adata.obsm["spatial"][:, 0], table["pxl_col_in_fullres"])
    np.testing.assert_array_equal(truth.adata.obsm["spatial"][:, 1], table["pxl_row_in_fullres"])
    np.testing.assert_array_equal(truth.centre_yx, truth.adata.obsm["spatial"][:, ::-1])
    assert truth.adata.obsm["spatial"].dtype == np.float64
    assert truth.counts.dtype == np.float32
    assert truth.counts.format == "csr"
    assert truth.genes == sample_genes()
    assert truth.adata.var["gene_ids"].iloc[0] == "SAMPLE00000"
    assert (truth.section_id, truth.patient_id, truth.platform) == ("S1", "P", "visium")
    assert truth.slide.mpp == pytest.approx((1, 1))
    assert truth.slide.resolution.source != "spot pitch"
    assert truth.spot_diameter_um == 55
    assert truth.pitch_um == pytest.approx(100, rel=1e-3)
    assert [w for w in truth.warnings if "off the tissue" not in w] == []
    assert truth.registration.given.on_tissue > 0.95
    held = truth.adata.uns["spatial"]["S1"]
    assert held["scalefactors"]["spot_diameter_fullres"] == pytest.approx(55)
    shape = held["images"]["hires"].shape
    assert shape[0] / held["scalefactors"]["tissue_hires_scalef"] == pytest.approx(truth.slide.shape[0])


def test_the_outs_folder_or_the_one_above_may_be_named(outs, truth):
    with read_section(outs.parent) as section:
        same(section, truth)
        assert section.section_id == "S1"
        assert section.patient_id == "S1"
        assert any("patient" in w for w in section.warnings)


def old_csv(outs: Path, table: pd.DataFrame) -> None:
    (outs / POSITIONS).unlink()
    table.to_csv(outs / "spatial/tissue_positions_list.csv", index=False, header=False)


def headless_new_name(outs: Path, table: pd.DataFrame) -> None:
    table.to_csv(outs / POSITIONS, index=False, header=False)


def headed_old_name(outs: Path, table: pd.DataFrame) -> None:
    (outs / POSITIONS).unlink()
    table.iloc[:, ::-1].to_csv(outs / "spatial/tissue_positions_list.csv", index=False)


def parquet(outs: Path, table: pd.DataFrame) -> None:
    pytest.importorskip("pyarrow")
    (outs / POSITIONS).unlink()
    table.to_parquet(outs / "spatial/tissue_positions.parquet")


@pytest.mark.parametrize("write", [old_csv, headless_new_name, headed_old_name, parquet])
def test_positions_of_every_version(outs, truth, tmp_path, write):
    other = copied(outs, tmp_path)
    write(other, positions(outs))
    with read_section(other) as section:
        same(section, truth)


@pytest.mark.parametrize("zipped", [True, False])
def test_counts_as_a_folder_without_other_features(outs, truth, tmp_path, zipped):
    other = copied(outs, tmp_path)
    counts, barcodes, genes, ids, _ = read_h5(other / COUNTS)
    (other / COUNTS).unlink()
    from scipy import sparse

    more = Matrix(
        sparse.hstack([counts, counts[:, :2]]).tocsr(), barcodes, np.append(genes, ["CD3", "CD8"]),
        np.append(ids, ["A1", "A2"]), 0,
    )  # fmt: skip
    kinds = ["Gene Expression"] * len(genes) + ["Antibody Capture"] * 2
    write_mtx(other / "filtered_feature_bc_matrix", more, kinds=kinds, zipped=zipped)
    with read_section(other) as section:
        same(section, truth)
        assert any("2 features are not gene expression" in w for w in section.warnings)


def test_raw_counts_only_when_filtered_ones_are_absent(outs, truth, tmp_path):
    other = copied(outs, tmp_path)
    shutil.copy(other / COUNTS, other / "raw_feature_bc_matrix.h5")
    change_counts(other, lambda m: m._replace(counts=m.counts * 2))
    with read_section(other) as section:
        assert section.counts.sum() == 2 * truth.counts.sum()
    (other / COUNTS).unlink()
    with read_section(other) as section:
        same(section, truth)
        assert any("raw" in w for w in section.warnings)


def test_a_downloaded_matrix_with_the_samples_name_before(outs, truth, tmp_path):
    other = copied(outs, tmp_path)
    (other / COUNTS).rename(other / f"V1_Breast_{COUNTS}")
    with read_section(other) as section:
        same(section, truth)


def test_the_pitch_gives_the_mpp_of_an_image_without(outs, truth, tmp_path):
    png = sample_section(tmp_path, name="S1", spots=(12, 12), mpp=1.0, image="png")
    with read_section(png) as section:
        same(section, truth)
        assert section.slide.resolution.source == "spot pitch"
        assert section.slide.mpp == pytest.approx((1, 1), rel=1e-3)
        assert pickle.loads(pickle.dumps(section)).slide.mpp == section.slide.mpp


def test_without_the_scan_the_hires_image_stands_in_and_says_so(outs, truth, tmp_path):
    other = copied(outs, tmp_path, scan=False)
    with read_section(other) as section:
        same(section, truth, 0.5)
        assert section.slide.path.name == "tissue_hires_image.png"
        assert section.slide.mpp == pytest.approx((2, 2), rel=0.01)
        assert any("stands in" in w and "image=" in w for w in section.warnings)
        assert any("coarser than 1" in w for w in section.warnings)
        assert section.pitch_um == pytest.approx(100)


def test_the_scan_may_be_named_apart(outs, truth, tmp_path):
    other = copied(outs, tmp_path, scan=False)
    with read_section(other, image=outs.parent / "S1.tif") as section:
        same(section, truth)
    with pytest.raises(SlideError):
        read_section(other, image=tmp_path / "nowhere.tif")


def test_the_hires_image_named_as_the_scan_is_recognised(outs, truth, tmp_path):
    other = copied(outs, tmp_path)
    renamed = shutil.copy(other / "spatial/tissue_hires_image.png", tmp_path / "my_scan.png")
    with read_section(other, image=renamed) as section:
        same(section, truth, 0.5)
        assert any("not the scan" in w for w in section.warnings)


def test_no_image_at_all(outs, tmp_path):
    other = copied(outs, tmp_path, scan=False)
    (other / "spatial/tissue_hires_image.png").unlink()
    with pytest.raises(SectionError, match=r"no image was found.*image="):
        read_section(other)


def test_a_reduced_scan_is_refused(outs, tmp_path):
    from PIL import Image

    other = copied(outs, tmp_path, scan=False)
    small = tmp_path / "small.png"
    with Image.open(outs.parent / "S1.tif") as image:
        image.resize((image.width // 3, image.height // 3)).save(small)
    with pytest.raises(SectionError, match=r"spots lie inside small.png .*reduced"):
        read_section(other, image=small)
    # found beside instead of named, it is passed over for the hires image
    shutil.copy(small, other.parent / "S1.png")
    with read_section(other) as section:
        assert section.slide.path.name == "tissue_hires_image.png"
        assert any("S1.png" in w and "holds" in w for w in section.warnings)


def test_a_pitch_that_does_not_fit_the_platform(outs, tmp_path):
    with read_section(outs, mpp=0.5) as section:
        assert section.pitch_um == pytest.approx(50)
        assert any("pitch" in w and "do not belong together" in w for w in section.warnings)
    with read_section(outs, mpp=1.03) as section:
        assert not any("do not belong together" in w for w in section.warnings)
    other = copied(outs, tmp_path)
    table = positions(other)
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] *= 0.8
    write_positions(other, table)
    with read_section(other) as section:
        assert any("80" in w and "do not belong together" in w for w in section.warnings)


def test_a_pitch_that_gives_an_absurd_mpp(outs, tmp_path):
    png = sample_section(tmp_path, name="S1", spots=(12, 12), mpp=1.0, image="png")
    table = positions(png)
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] *= 0.2
    write_positions(png, table)
    with read_section(png) as section:
        assert any("5 µm/px is what no scan of a slide has" in w for w in section.warnings)
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] *= 0.2
    write_positions(png, table)
    with pytest.raises(SectionError, match=r"25 µm/px.*not the image"):
        read_section(png)


def test_a_wrong_scale_factor_is_said(outs, tmp_path):
    other = copied(outs, tmp_path, scan=False)
    change_scales(other, tissue_hires_scalef=0.4)
    with read_section(other) as section:
        assert any("scale factors and images do not belong together" in w for w in section.warnings)
    other = copied(outs, tmp_path / "b")
    change_scales(other, spot_diameter_fullres=200.0)
    with read_section(other) as section:
        assert any("diameter" in w and "200" in w for w in section.warnings)
        assert section.spot_diameter_um == 55


def test_swapped_axes_are_said(outs, tmp_path):
    other = copied(outs, tmp_path)
    swap = {"pxl_row_in_fullres": "pxl_col_in_fullres", "pxl_col_in_fullres": "pxl_row_in_fullres"}
    write_positions(other, positions(other).rename(columns=swap))
    with read_section(other, image=other.parent / "S1.tif") as section:
        assert section.registration.best.name == "x and y swapped"
        assert any("axes swapped" in w for w in section.warnings)


def test_shuffled_positions_do_not_follow_the_array(outs, tmp_path):
    other = copied(outs, tmp_path)
    table = positions(other)
    order = np.random.default_rng(0).permutation(len(table))
    pixels = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    table[pixels] = table[pixels].to_numpy()[order]
    write_positions(other, table)
    with read_section(other) as section:
        assert any("off the array" in w for w in section.warnings)


def test_spots_that_cannot_be_used_are_counted(outs, truth, tmp_path):
    other = copied(outs, tmp_path)
    first = list(truth.adata.obs_names[:12])

    def spoil(m: Matrix) -> Matrix:
        counts = m.counts.tolil()
        counts[:3] = 0
        barcodes = m.barcodes.copy()
        barcodes[3:5] = ["nobody-1", "nobody-2"]
        return m._replace(counts=counts.tocsr(), barcodes=barcodes)

    change_counts(other, spoil)
    table = positions(other).set_index("barcode")
    table.loc[first[5:9], "pxl_col_in_fullres"] = 1e6
    table.loc[first[9], "pxl_row_in_fullres"] = np.nan
    write_positions(other, table.reset_index())
    with read_section(other) as section:
        assert len(section.adata) == len(truth.adata) - 10
        said = " | ".join(section.warnings)
        n = len(truth.adata)
        assert f"2 of {n} spots under tissue have no counts" in said
        assert f"2 of {n} barcodes with counts are no spot" in said
        assert "1 spots have no finite position" in said
        assert f"3 of {n - 3} spots have zero counts" in said
        assert f"4 of {n - 6} spots lie outside the image" in said
        assert section.pitch_um == pytest.approx(100, rel=0.01)  # four wild spots do not move it


def test_warnings_reach_the_progress(outs):
    progress = JobProgress()
    with read_section(outs, mpp=0.5, progress=progress) as section:
        assert progress.notes == [f"S1: {w}" for w in section.warnings]
        assert progress.notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda o: change_counts(o, lambda m: m._replace(barcodes=m.barcodes + "x")), "none of the 109 barcodes"),
        (lambda o: change_counts(o, lambda m: m._replace(counts=m.counts * 0)), "any counts"),
        (lambda o: change_counts(o, lambda m: m._replace(counts=-m.counts)), "negative"),
        (lambda o: (o / COUNTS).unlink(), "has no counts"),
        (lambda o: (o / COUNTS).write_bytes(b"no hdf5"), "cannot be read"),
        (lambda o: (o / POSITIONS).unlink(), "no positions"),
        (lambda o: (o / POSITIONS).write_text("barcode,in_tissue\nA,1\n"), "lacks the columns"),
        (lambda o: (o / POSITIONS).write_text("A,1,0,0\n"), "4 columns"),
        (lambda o: (o / "spatial/scalefactors_json.json").unlink(), "scalefactors_json.json"),
        (lambda o: (o / "spatial/scalefactors_json.json").write_text("{"), "cannot be read"),
        (lambda o: write_positions(o, positions(o).assign(in_tissue=0)), "under tissue"),
        (lambda o: write_positions(o, pd.concat([positions(o)] * 2)), "twice"),
    ],
)
def test_files_that_are_missing_or_do_not_fit(outs, tmp_path, spoil, message):
    other = copied(outs, tmp_path)
    spoil(other)
    with pytest.raises(SectionError, match=message) as e:
        read_section(other)
    assert isinstance(e.value, (PekaError, ValueError))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["nowhere", "notes.txt", "empty"])
def test_paths_that_are_no_section(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SectionError, match=r"there is no|is no section"):
        read_section(tmp_path / name)


# -- Visium HD ---------------------------------------------------------------------------------------------------


def test_visium_hd_takes_the_bins_that_are_asked_for(outs, tmp_path):
    pytest.importorskip("pyarrow")
    hd = write_hd(outs, tmp_path)
    for asked, bin_um in ((None, 16), (8, 8)):
        with read_section(hd, bin_um=asked) as section:
            assert section.platform == "visium-hd"
            assert section.spot_diameter_um == bin_um
            assert section.pitch_um == pytest.approx(bin_um)
            x = section.adata.obsm["spatial"][:, 0]
            column = np.asarray(section.counts[:, 0].todense()).ravel() - 1
            np.testing.assert_allclose(x, 150 + (column + 0.5) * bin_um)
            assert len(section.adata) == 54 * 50
            assert section.section_id == "hd"
            assert not any("pitch" in w for w in section.warnings)
    with read_section(hd / "binned_outputs/square_008um") as section:
        assert section.spot_diameter_um == 8
    with pytest.raises(SectionError, match="no bins of 2 µm; it has: 8 µm, 16 µm"):
        read_section(hd, bin_um=2)
    with pytest.raises(SectionError, match="no binned_outputs"):
        read_section(outs, bin_um=8)
    shutil.rmtree(hd / "binned_outputs/square_016um")
    with read_section(hd) as section:
        assert any("those of 8 µm are read" in w for w in section.warnings)


# -- what a section offers ---------------------------------------------------------------------------------------


def test_tiles_lie_on_the_spots(truth):
    table, order = truth.spots(TileSpec(64, 1.0))
    np.testing.assert_array_equal(table.centre_yx, truth.centre_yx[order])
    assert table.ids == tuple(truth.adata.obs_names[order])
    assert sorted(order) == list(range(len(truth.adata)))


def test_a_fingerprint_holds_counts_positions_and_image(outs, truth, tmp_path):
    with read_section(copied(outs, tmp_path / "same")) as section:
        assert section.fingerprint == truth.fingerprint
    other = copied(outs, tmp_path / "moved")
    table = positions(other)
    table.loc[table["in_tissue"] == 1, "pxl_row_in_fullres"] += 0.001
    write_positions(other, table)
    with read_section(other) as section:
        assert section.fingerprint != truth.fingerprint
    other = copied(outs, tmp_path / "counted")
    change_counts(other, lambda m: m._replace(counts=m.counts + m.counts.multiply(m.counts == m.counts.max())))
    with read_section(other) as section:
        assert section.fingerprint != truth.fingerprint


def test_an_affine_maps_the_files_coordinates(outs, truth, tmp_path):
    other = copied(outs, tmp_path)
    table = positions(other)
    x, y = table["pxl_col_in_fullres"].copy(), table["pxl_row_in_fullres"].copy()
    table["pxl_col_in_fullres"], table["pxl_row_in_fullres"] = 0.5 * y + 3, 0.5 * x - 7  # turned, halved, moved
    write_positions(other, table)
    back = [[0, 2, 14], [2, 0, -6]]
    with read_section(other, affine=back) as section:
        same(section, truth)
        assert section.spot_diameter_um == 55
    pairs = tmp_path / "pairs.json"
    given = [[3, -7], [3, 43], [53, -7], [53, 43.5]]
    pairs.write_text(json.dumps({"from": given, "to": [[0, 0], [100, 0], [0, 100], [100, 100]]}))
    with read_section(other, affine=pairs) as section:
        np.testing.assert_allclose(section.adata.obsm["spatial"], truth.adata.obsm["spatial"], atol=20)
        assert any("misses its point pairs by" in w and "µm" in w for w in section.warnings)


# -- h5ad and HEST -----------------------------------------------------------------------------------------------


def test_an_h5ad_with_its_scan_beside(outs, truth, tmp_path):
    as_anndata(outs).write_h5ad(tmp_path / "a.h5ad")
    shutil.copy(outs.parent / "S1.tif", tmp_path / "a.tif")
    with read_section(tmp_path / "a.h5ad") as section:
        same(section, truth)
        assert (section.section_id, section.platform, section.spot_diameter_um) == ("a", "visium", 55)
        assert list(section.adata.var["gene_ids"]) == list(truth.adata.var["gene_ids"])


def test_what_was_read_can_be_written_and_read_again(truth, tmp_path):
    truth.adata.write_h5ad(tmp_path / "again.h5ad")
    with read_section(tmp_path / "again.h5ad") as section:
        same(section, truth)
        assert section.slide.path == truth.slide.path


def normalised(adata):
    total = np.asarray(adata.X.sum(1))
    return adata.X.multiply(1e4 / total).log1p().tocsr()


@pytest.mark.parametrize("where", ["layers", "raw"])
def test_raw_counts_are_found_where_scverse_keeps_them(outs, truth, tmp_path, where):
    adata = as_anndata(outs)
    if where == "layers":
        adata.layers["counts"] = adata.X.copy()
    else:
        adata.raw = adata.copy()
        adata = adata[:, :10].copy()  # raw keeps all genes
    adata.X = normalised(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with read_section(tmp_path / "a.h5ad", image=outs.parent / "S1.tif") as section:
        same(section, truth)
        assert any(where in w for w in section.warnings)


def test_normalised_values_are_no_counts(outs, tmp_path):
    adata = as_anndata(outs)
    adata.X = normalised(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SectionError, match=r"X has fractions \(\d.*layers"):
        read_section(tmp_path / "a.h5ad", image=outs.parent / "S1.tif")
    adata.X = adata.X.toarray() - 1
    adata.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(SectionError, match="negative"):
        read_section(tmp_path / "b.h5ad", image=outs.parent / "S1.tif")


def test_an_image_that_lies_only_in_the_file_is_kept_once(outs, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(tmp_path / "cache"))
    as_anndata(outs, image=True).write_h5ad(tmp_path / "a.h5ad")
    for _ in range(2):
        with read_section(tmp_path / "a.h5ad") as section:
            same(section, truth, 0.5)
            assert section.slide.path.parent == tmp_path / "cache/images"
            assert any("inside the file" in w and str(section.slide.path) in w for w in section.warnings)
    assert len(list((tmp_path / "cache/images").iterdir())) == 1


def test_a_file_of_two_sections(outs, truth, tmp_path):
    import anndata

    a, b = as_anndata(outs), as_anndata(outs)
    b.obs_names = [f"{n}-b" for n in b.obs_names]
    b.X = b.X * 2
    both = anndata.concat({"A": a, "B": b}, label="library_id")
    both.uns["spatial"] = {"A": a.uns["spatial"]["lib"], "B": b.uns["spatial"]["lib"]}
    both.write_h5ad(tmp_path / "both.h5ad")
    image = outs.parent / "S1.tif"
    with pytest.raises(SectionError, match=r"2 sections \(A, B\): say which with --section or section="):
        read_section(tmp_path / "both.h5ad", image=image)
    with read_section(tmp_path / "both.h5ad", image=image, section="B") as section:
        assert section.section_id == "B"
        assert section.counts.sum() == 2 * truth.counts.sum()


def test_an_h5ad_without_positions_or_counts(outs, tmp_path):
    adata = as_anndata(outs)
    del adata.obsm["spatial"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SectionError, match=r'obsm\["spatial"\]'):
        read_section(tmp_path / "a.h5ad")
    (tmp_path / "b.h5ad").write_bytes(b"nothing")
    with pytest.raises(SectionError, match="AnnData"):
        read_section(tmp_path / "b.h5ad")


def test_a_platform_that_nobody_names_needs_an_mpp(outs, tmp_path):
    adata = as_anndata(outs)
    adata.obs_names = [f"cell{i}" for i in range(len(adata))]
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    png = tmp_path / "a.png"
    from PIL import Image

    with Image.open(outs.parent / "S1.tif") as image:
        image.save(png, compress_level=1)
    with pytest.raises(SectionError, match="mpp="):
        read_section(tmp_path / "a.h5ad")
    with read_section(tmp_path / "a.h5ad", mpp=1.0) as section:
        assert section.platform == "unknown"
        assert section.pitch_um == pytest.approx(100, rel=0.01)  # from the neighbours
        assert section.spot_diameter_um == pytest.approx(55)


def test_ensembl_ids_give_way_to_symbols(outs, tmp_path):
    adata = as_anndata(outs)
    symbols = list(adata.var_names)
    symbols[1] = symbols[0]
    adata.var_names = [f"ENSG{i:011d}.{i % 7}" for i in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "ids.h5ad")
    adata.var["gene_symbols"] = symbols
    adata.write_h5ad(tmp_path / "both.h5ad")
    image = outs.parent / "S1.tif"
    with read_section(tmp_path / "ids.h5ad", image=image) as section:
        assert section.genes[:2] == ("ENSG00000000000", "ENSG00000000001")
        assert any("Ensembl" in w for w in section.warnings)
    with read_section(tmp_path / "both.h5ad", image=image) as section:
        assert section.genes[:3] == (symbols[0], f"{symbols[0]}-1", symbols[2])
        assert section.adata.var["gene_ids"].iloc[2] == "ENSG00000000002"
        assert any("more than once" in w for w in section.warnings)


def test_hest_finds_scan_patient_and_resolution_by_its_folders(outs, truth, tmp_path):
    from PIL import Image

    for folder in ("st", "wsis", "metadata"):
        (tmp_path / folder).mkdir()
    adata = as_anndata(outs)
    adata.uns["spatial"] = {"ST": {"images": {}, "scalefactors": {"spot_diameter_fullres": 55.0}}}
    adata.write_h5ad(tmp_path / "st/TENX1.h5ad")
    with Image.open(outs.parent / "S1.tif") as image:
        bare = Image.fromarray(np.asarray(image))  # without a resolution
    bare.save(tmp_path / "wsis/TENX1.tif", compression="tiff_deflate")
    with read_section(tmp_path / "st/TENX1.h5ad") as section:
        same(section, truth)
        assert (section.platform, section.patient_id) == ("hest", "TENX1")
    about = {"st_technology": "Xenium", "patient": "Patient 1", "pixel_size_um_estimated": 1.01}
    (tmp_path / "metadata/TENX1.json").write_text(json.dumps(about))
    with read_section(tmp_path / "st/TENX1.h5ad") as section:
        assert section.patient_id == "Patient 1"
        assert section.slide.mpp == (1.01, 1.01)
        assert "HEST" in section.slide.resolution.source


# -- ST ----------------------------------------------------------------------------------------------------------


def write_st(outs: Path, folder: Path, truth: Section) -> Path:
    """Write a sample section as an ST array: 200 µm pitch is had by calling a pixel 2 µm."""
    row, col = (truth.adata.obs[c].to_numpy() for c in ("array_row", "array_col"))
    keep = (row % 2 == 0) & (col % 2 == 0)
    row, col = row[keep] // 2, col[keep] // 2
    ids = [f"{c}x{r}" for r, c in zip(row, col)]
    counts = pd.DataFrame(truth.counts[np.flatnonzero(keep)].toarray().astype(int), index=ids, columns=truth.genes)
    counts.iloc[:-1].to_csv(folder / "T.tsv.gz", sep="\t")
    selection = pd.DataFrame(
        {
            "x": col, "y": row, "new_x": col + 0.01, "new_y": row - 0.02,
            "pixel_x": 150.25 + col * 100, "pixel_y": 120.75 + row * 100, "selected": 1,
        }
    )  # fmt: skip
    selection.loc[0, "selected"] = 0
    selection.to_csv(folder / "T_selection.tsv", sep="\t", index=False)
    return folder / "T.tsv.gz"


def test_st_counts_and_selection_are_joined_by_id(outs, truth, tmp_path):
    from PIL import Image

    path = write_st(outs, tmp_path, truth)
    with pytest.raises(SectionError, match=r"T.jpg"):
        read_section(path)
    with Image.open(outs.parent / "S1.tif") as image:
        image.save(tmp_path / "T.png", compress_level=1)
    with read_section(path) as section:
        table = pd.read_csv(path, sep="\t", index_col=0)
        selection = pd.read_csv(tmp_path / "T_selection.tsv", sep="\t")
        selection.index = [f"{x}x{y}" for x, y in zip(selection.x, selection.y)]
        names = list(section.adata.obs_names)
        assert len(names) == len(selection) - 2
        assert selection.index[0] not in names
        np.testing.assert_array_equal(section.counts.toarray(), table.loc[names].to_numpy())
        np.testing.assert_allclose(
            section.adata.obsm["spatial"], selection.loc[names, ["pixel_x", "pixel_y"]].to_numpy()
        )
        assert (section.platform, section.spot_diameter_um) == ("st", 100)
        assert section.slide.mpp == pytest.approx((2, 2))
        assert any(f"1 of {len(selection)} spots are not selected" in w for w in section.warnings)
        assert any("have no counts" in w for w in section.warnings)
    (tmp_path / "T_selection.tsv").unlink()
    with pytest.raises(SectionError, match=r"T_selection\.tsv is not beside it"):
        read_section(path)


# -- SpatialData -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_spatialdata_is_mapped_into_the_pixels_of_its_image(outs, truth, tmp_path):
    sd = pytest.importorskip("spatialdata")
    from PIL import Image
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    with Image.open(outs.parent / "S1.tif") as image:
        pixels = np.asarray(image)
    adata = as_anndata(outs)
    xy = adata.obsm["spatial"]
    # shapes are kept turned and halved: only their transformation brings them onto the image
    turned = np.column_stack([xy[:, 1], xy[:, 0]]) / 2
    there = Affine([[0, 2, 0], [2, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    shapes = ShapesModel.parse(
        turned, geometry=0, radius=27.5 / 2, index=np.arange(len(xy)) + 5, transformations={"global": there}
    )
    adata.obs["region"] = pd.Categorical(["spots"] * len(xy))
    adata.obs["spot_id"] = np.arange(len(xy)) + 5
    del adata.uns["spatial"]
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="spot_id")
    images = {
        "scan_full": Image2DModel.parse(
            pixels, dims=("y", "x", "c"), scale_factors=[2], transformations={"global": Identity()}
        ),
        "scan_hires": Image2DModel.parse(
            pixels[::2, ::2], dims=("y", "x", "c"), transformations={"global": Scale([2, 2], axes=("x", "y"))}
        ),
    }
    store = sd.SpatialData(images=images, shapes={"spots": shapes}, tables={"table": table})
    store.write(tmp_path / "s.zarr")
    with read_section(tmp_path / "s.zarr") as section:
        same(section, truth)
        assert section.slide.path.name == "scan_full"
        assert (section.section_id, section.platform) == ("s", "visium")
        assert section.slide.resolution.source == "spot pitch"
        y, x = section.centre_yx[7].astype(int)
        around = section.slide.read_level(0, y - 20, x - 20, 40, 40)
        np.testing.assert_array_equal(around, truth.slide.read_level(0, y - 20, x - 20, 40, 40))
        assert np.ptp(around) > 50
    with read_section(tmp_path / "s.zarr", image="scan_hires") as section:
        same(section, truth, 0.5)
    with read_section(tmp_path / "s.zarr", image=outs.parent / "S1.tif") as section:
        same(section, truth)
        assert section.slide.path.name == "S1.tif"
    shutil.rmtree(tmp_path / "s.zarr/tables/table")
    with pytest.raises(SectionError):
        read_section(tmp_path / "s.zarr")


# -- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "spots", "mpp"), [("C2", 187, 0.688), ("C3", 180, 0.686)])
def test_real_st(shared_data, name, spots, mpp):
    with read_section(shared_data / f"st/{name}.tsv.gz", patient="C") as section:
        assert section.adata.n_obs == spots
        assert section.slide.mpp == pytest.approx((mpp, mpp), rel=0.005)
        assert section.pitch_um == pytest.approx(200)
        assert section.registration.given.on_tissue > 0.98
        assert section.registration.best.name == "as given"
        assert "ERBB2" in section.genes


def test_real_space_ranger_1(shared_data):
    with read_section(shared_data / "visium/spaceranger_v1") as section:
        assert section.adata.shape == (100, 100)
        table = read_positions(shared_data / "visium/spaceranger_v1/spatial")
        scale = 0.150015
        want = table.loc[section.adata.obs_names, ["x", "y"]].to_numpy() * scale
        np.testing.assert_allclose(section.adata.obsm["spatial"], want)
        assert section.spot_diameter_um == 55
        assert section.slide.mpp[0] == pytest.approx(0.7252 / scale, rel=1e-3)
        assert any("coarser" in w for w in section.warnings)


def test_further_embeddings_come_along(outs, truth, tmp_path):
    """Embeddings of another model are how a teacher is given: each stays with its spot."""
    adata = as_anndata(outs)
    adata.obsm["X_scfoundation"] = np.arange(len(adata) * 3, dtype=np.float32).reshape(-1, 3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with read_section(tmp_path / "a.h5ad", image=outs.parent / "S1.tif") as section:
        got = section.adata.obsm["X_scfoundation"]
        for name in (section.adata.obs_names[0], section.adata.obs_names[-1]):
            here, there = section.adata.obs_names.get_loc(name), adata.obs_names.get_loc(name)
            np.testing.assert_array_equal(got[here], adata.obsm["X_scfoundation"][there])
