"""HEST-bench's folder layout, in a small stand-in of the same format."""

from __future__ import annotations

import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from napari_peka.core.errors import SectionError, SettingError, UnknownName
from napari_peka.training.ceiling import UNITS
from napari_peka.training.hest import HEST_UNIT, hest_tasks, read_hest_task

GENES = ["ERBB2", "KRT8", "CD3E"]


@pytest.fixture
def bench(tmp_path):
    """Two tasks as HEST-bench lays them out: some spots have no patch, and patches lie in an order of their own."""
    rng = np.random.default_rng(0)
    for task, samples in (("IDC", ["INT1", "INT2", "INT3"]), ("PAAD", ["TENX1", "TENX2"])):
        folder = tmp_path / "bench" / task
        for name in ("splits", "patches", "adata"):
            (folder / name).mkdir(parents=True)
        (folder / "var_50genes.json").write_text(json.dumps({"genes": GENES}))
        for sample in samples:
            barcodes = [f"{sample}-{i}" for i in range(9)]
            counts = rng.poisson(3, (9, 5)).astype(np.float32)
            adata = anndata.AnnData(
                sparse.csr_matrix(counts),
                obs=pd.DataFrame(index=barcodes),
                var=pd.DataFrame(index=["ACTB", *GENES, "GAPDH"]),
                obsm={"spatial": rng.uniform(0, 1000, (9, 2))},
            )
            adata.write_h5ad(folder / "adata" / f"{sample}.h5ad")
            kept = rng.permutation(9)[:7]
            with h5py.File(folder / "patches" / f"{sample}.h5", "w") as f:
                f["img"] = np.stack([np.full((224, 224, 3), i, np.uint8) for i in kept])
                f["coords"] = rng.integers(0, 1000, (7, 2))
                f["barcode"] = np.array([[barcodes[i]] for i in kept], dtype="S")
        for k, held_out in enumerate(samples):
            for part, names in (("train", [s for s in samples if s != held_out]), ("test", [held_out])):
                rows = [
                    {"sample_id": s, "patches_path": f"patches/{s}.h5", "expr_path": f"adata/{s}.h5ad"} for s in names
                ]
                pd.DataFrame(rows).to_csv(folder / "splits" / f"{part}_{k}.csv", index=False)
    return tmp_path / "bench"


def test_tasks_folds_and_genes_are_read(bench):
    (bench / "fm_v1").mkdir()  # weights lie beside the tasks
    assert hest_tasks(bench) == ["IDC", "PAAD"]
    task = read_hest_task(bench / "IDC")
    assert task.name == "IDC"
    assert task.genes == tuple(GENES)
    assert list(task.sections) == ["INT2", "INT3", "INT1"]
    assert [(f.name, f.train, f.test) for f in task.folds] == [
        ("split 0", ("INT2", "INT3"), ("INT1",)),
        ("split 1", ("INT1", "INT3"), ("INT2",)),
        ("split 2", ("INT1", "INT2"), ("INT3",)),
    ]
    fold = task.folds[1].rows(["INT1", "INT2", "INT2", "INT3"])
    assert fold.test.tolist() == [False, True, True, False]
    assert fold.train.tolist() == [True, False, False, True]
    assert not fold.optimistic
    assert HEST_UNIT in UNITS


def test_splits_are_ordered_by_number_not_by_name(bench):
    folder = bench / "PAAD" / "splits"
    for k in range(2, 11):
        for part in ("train", "test"):
            shutil.copy(folder / f"{part}_0.csv", folder / f"{part}_{k}.csv")
    (folder / "notes.csv").write_text("x")
    assert [f.name for f in read_hest_task(bench / "PAAD").folds] == [f"split {k}" for k in range(11)]


def test_patches_and_counts_are_paired_by_barcode(bench):
    section = read_hest_task(bench / "IDC").sections["INT1"]
    tiles, barcodes, adata = section.tiles(), section.barcodes(), section.counts()
    assert tiles.shape == (7, 224, 224, 3)
    assert tiles.dtype == np.uint8
    # the stand-in paints a patch with its spot's number
    assert [b.split("-")[1] for b in barcodes] == [str(t[0, 0, 0]) for t in tiles]
    assert list(adata.obs_names) == barcodes
    assert list(adata[:, list(GENES)].var_names) == GENES
    np.testing.assert_array_equal(section.tiles(slice(2, 4)), tiles[2:4])


def test_the_older_names_of_the_arrays_are_read(bench):
    section = read_hest_task(bench / "IDC").sections["INT1"]
    tiles, barcodes = section.tiles(), section.barcodes()
    with h5py.File(section.patches, "r+") as f:
        f.move("img", "imgs")
        f.move("barcode", "barcodes")
    np.testing.assert_array_equal(section.tiles(), tiles)
    assert section.barcodes() == barcodes


def test_what_is_wrong_is_said(bench):
    task = bench / "IDC"
    with pytest.raises(UnknownName, match="did you mean PAAD"):
        read_hest_task(bench / "PAD")
    with pytest.raises(SettingError, match="holds no HEST-bench task"):
        hest_tasks(task / "splits")
    with pytest.raises(SettingError, match="has no splits"):
        read_hest_task(task / "patches")
    with pytest.raises(SettingError, match=r"mean_50genes\.json cannot be read"):
        read_hest_task(task, "mean_50genes.json")
    (task / "var_50genes.json").write_text("[]")
    with pytest.raises(SettingError, match="is no gene list"):
        read_hest_task(task)


@pytest.mark.parametrize(
    ("name", "text", "kind", "words"),
    [
        ("train_1.csv", None, SettingError, "train_1.csv cannot be read"),
        ("train_1.csv", "sample_id,patches_path\n", SettingError, "no column expr_path"),
        ("test_1.csv", "sample_id,patches_path,expr_path\nINT1,patches/INT1.h5,adata/INT1.h5ad\n", SettingError,
         "both trains on INT1 and holds it out"),
        ("test_1.csv", "sample_id,patches_path,expr_path\nINT9,patches/INT9.h5,adata/INT9.h5ad\n", SectionError,
         "INT9.h5, which is not there"),
        ("test_1.csv", "sample_id,patches_path,expr_path\nINT2,patches/INT2.h5,adata/INT3.h5ad\n", SettingError,
         "other files for INT2"),
    ],
)  # fmt: skip
def test_splits_that_do_not_fit_are_refused(bench, name, text, kind, words):
    path = bench / "IDC" / "splits" / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(kind, match=words):
        read_hest_task(bench / "IDC")


def test_damaged_or_strange_sections_are_said(bench):
    task = read_hest_task(bench / "IDC")
    one, two, three = (task.sections[s] for s in ("INT1", "INT2", "INT3"))
    one.patches.write_bytes(b"nothing")
    with pytest.raises(SectionError, match="no HDF5 file"):
        one.tiles()
    shutil.copy(three.expression, two.expression)
    with pytest.raises(SectionError, match="7 of 7 patches of INT2 have no counts"):
        two.counts()
    three.expression.write_bytes(b"nothing")
    with pytest.raises(SectionError, match="no AnnData file"):
        three.counts()
    with h5py.File(two.patches, "r+") as f:
        del f["img"]
    with pytest.raises(SectionError, match="has no 'img'"):
        two.tiles()
