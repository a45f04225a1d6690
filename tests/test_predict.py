"""The walk from slide to map: values, resume after any interruption, unreadable tiles, refusals to mix."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import anndata
import numpy as np
import pytest
import shapely
import zarr

import napari_peka as peka
from napari_peka.core.errors import (
    NoTissue,
    OutputMismatch,
    RegionError,
    SettingError,
    StoreError,
    Undecodable,
    UnknownName,
)
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io import store as stored

CONFIG = peka.PredictConfig(device="cpu", precision="fp32", batch_size=8)


@pytest.fixture(scope="module")
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(slide, tiny_model, tmp_path_factory):
    """An uninterrupted prediction."""
    return peka.predict(slide, tiny_model, output=tmp_path_factory.mktemp("whole") / "a.peka.zarr", config=CONFIG)


def same(a, b):
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.tiles.centre_yx, b.tiles.centre_yx)
    for gene in a.genes:
        np.testing.assert_array_equal(a.values(gene), b.values(gene))


def test_the_result_is_an_anndata_that_says_what_made_it(whole, slide):
    adata = anndata.read_zarr(whole.path)
    assert adata.obsm["X_peka"].dtype == np.float16
    assert adata.obsm["X_peka"].shape == (len(whole.tiles), 192) or adata.obsm["X_peka"].shape[0] == len(whole.tiles)
    assert {"row", "col", "block", "read_ok"} <= set(adata.obs)
    assert adata.uns["napari_peka"]["unit"] == "log1p CP10K"
    assert adata.uns["napari_peka"]["slide"]["fingerprint"] == slide.fingerprint
    # the first tile's centre in level-0 px, (x, y): its grid position times the tile's 32 or 224 µm at 0.5 µm/px
    side = whole.tiles.size0_yx
    want = (adata.obs[["col", "row"]].to_numpy() + 0.5) * [side[1], side[0]]
    np.testing.assert_allclose(adata.obsm["spatial"], want)
    values = adata.obsm["X_peka"].astype(np.float32) @ adata.varm["peka_weights"].T + adata.var["bias"].to_numpy()
    np.testing.assert_allclose(values[:, 0], whole.values("ERBB2"), rtol=1e-4, atol=1e-3)


def test_read_back_it_is_the_same(whole):
    same(whole, peka.read_prediction(whole.path))


def test_values_do_not_depend_on_the_order_of_work(whole, slide, tiny_model):
    from napari_peka.core.geometry import Rect

    other = peka.predict(
        slide, tiny_model, config=CONFIG, on_start=lambda _, schedule: schedule.prefer(Rect(1500, 2000, 900, 900))
    )
    assert other.path is None
    same(whole, other)


def test_to_anndata_holds_the_asked_genes(whole):
    adata = whole.to_anndata(["krt8", "ERBB2"])
    assert list(adata.var_names) == ["KRT8", "ERBB2"]
    np.testing.assert_allclose(adata.X[:, 1], whole.values("ERBB2"), atol=1e-5)


def test_what_differs_is_said_without_hashes(whole, slide, tiny_model):
    other = CONFIG.model_copy(update={"stride_px": 32})
    with pytest.raises(OutputMismatch) as e:
        peka.predict(slide, tiny_model, output=whole.path, config=other)
    assert "belongs to another run, with tiles of another size or distance; choose" in str(e.value)
    assert "--overwrite" in str(e.value)
    assert not re.search(r"[0-9a-f]{12}", str(e.value).replace(str(whole.path), ""))


def test_names_in_place_of_things_are_said(slide, tiny_model):
    with pytest.raises(SettingError, match="open_slide"):
        peka.predict("case.svs", tiny_model)
    with pytest.raises(SettingError, match="load_model"):
        peka.predict(slide, "demo")


def test_a_prediction_is_a_line_and_says_where_its_trust_comes_from(whole):
    assert len(repr(whole)) < 200 + len(str(whole.path))
    assert "5 genes" in repr(whole)
    assert whole.pcc_split == "none: random weights"
    assert peka.read_prediction(whole.path).pcc_split == whole.pcc_split


def test_smoothed_scores_are_flagged_wherever_they_are_shown(slide, tiny_model, tmp_path):
    head = tiny_model.spec.head.model_copy(update={"neighbour_smoothing": True})
    model = dataclasses.replace(tiny_model, spec=tiny_model.spec.model_copy(update={"head": head}))
    region = shapely.box(1500, 1500, 2000, 2000)
    peka.predict(slide, model, output=tmp_path / "a.zarr", region=region, config=CONFIG)
    split = peka.read_prediction(tmp_path / "a.zarr").pcc_split
    assert split == "none: random weights; measured on counts averaged over neighbouring spots, which flatters"


def test_a_plain_model_makes_results_that_older_versions_read(whole):
    assert whole.record["format"] == 1
    assert set(whole.record["tile_spec"]) == {"size_px", "mpp", "stride_px"}
    assert whole.record["identity"]["tile size"] == whole.record["tile_spec"]
    assert whole.record["model"]["passes_per_tile"] == 1


def test_a_result_of_a_later_version_asks_for_an_update(whole, monkeypatch):
    from napari_peka.io import prediction

    monkeypatch.setattr(prediction, "FORMAT", 0)  # to a version before the first this result is of a later one
    with pytest.raises(StoreError, match="newer version of napari-peka; update"):
        peka.read_prediction(whole.path)


PARTS = [
    "obs/read_ok/0", "obs/_index/0", "obsm/spatial/0.0", "obsm/X_peka/0.0", "varm/peka_weights/0.0", "var/bias/0",
    "obs/row", "varm", "uns/napari_peka/record/0",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_result_of_which_a_part_is_missing_is_refused(whole, tmp_path, part):
    """Zarr reads what is missing as zeros, without a word: a map would be trusted that is none."""
    copy = tmp_path / "copy.peka.zarr"
    shutil.copytree(whole.path, copy)
    assert peka.read_prediction(copy).n_done == len(whole.tiles)
    gone = copy / part
    files_of = [p for p in gone.rglob("*") if not p.name.startswith(".")] if gone.is_dir() else [gone]
    for file in [p for p in files_of if p.is_file()]:
        file.unlink()
    with pytest.raises(StoreError, match=r"damaged.*copy it again, or move it away and predict its slide again"):
        peka.read_prediction(copy)


def test_results_that_are_written_at_once_are_whole(whole, tmp_path):
    """What zarr is told of empty parts counts for all threads; slides of a crew are ended by several."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: stored.save_result(whole, tmp_path / f"{i}.peka.zarr"), range(12)))
    for one in made:
        assert peka.read_prediction(one.path).n_done == len(whole.tiles)


def test_results_of_older_versions_are_read_without_parts_that_are_zero(whole, tmp_path):
    copy = tmp_path / "copy.peka.zarr"
    shutil.copytree(whole.path, copy)
    record = copy / "uns" / "napari_peka" / "record" / "0"
    before = peka.read_prediction(copy)
    stored.amend_record(before)
    assert peka.read_prediction(copy).record == before.record
    amended = record.read_bytes()
    (copy / "obs" / "block" / "0").unlink()  # zero all over where there is one block
    with pytest.raises(StoreError):
        peka.read_prediction(copy)
    _forget_that_it_is_complete(copy)
    assert record.read_bytes() != amended
    assert not peka.read_prediction(copy).tiles.block.any()


def _forget_that_it_is_complete(path) -> None:
    group = zarr.open_group(str(path), mode="r+")["uns/napari_peka"]
    record = json.loads(str(np.asarray(group["record"][()]).item()))
    assert record.pop("complete") is True
    group["record"][()] = json.dumps(record)


def test_an_unknown_gene_offers_near_names(whole):
    with pytest.raises(UnknownName, match="did you mean ERBB2"):
        whole.values("ERB2")


class StopAfter(JobProgress):
    def __init__(self, n):
        super().__init__()
        self.left = n

    def changed(self):
        if self.snapshot().stage == "predicting" and self.snapshot().done >= self.left:
            self.cancel()


def test_cancel_keeps_what_is_done_and_the_same_call_resumes(whole, slide, tiny_model, tmp_path):
    out = tmp_path / "a.peka.zarr"
    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=out, config=CONFIG, progress=StopAfter(30))
    assert not out.exists()
    with pytest.raises(StoreError, match="not finished"):
        peka.read_prediction(out)
    again = peka.predict(slide, tiny_model, output=out, config=CONFIG)
    assert again.record["run"]["resumed_tiles"] >= 30
    same(whole, again)
    assert [p.name for p in tmp_path.iterdir()] == ["a.peka.zarr"]  # no lock either


def test_a_finished_result_is_returned_at_once(slide, tiny_model, tmp_path, whole):
    out = tmp_path / "a.peka.zarr"
    peka.predict(slide, tiny_model, output=out, config=CONFIG)
    again = peka.predict(slide, tiny_model, output=out, config=CONFIG)
    assert again.record["run"]["resumed_tiles"] == len(again.tiles)
    same(whole, again)
    assert not (tmp_path / "a.peka.zarr.partial").exists()


def test_another_setting_never_mixes(slide, tiny_model, tmp_path):
    out = tmp_path / "a.peka.zarr"
    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=out, config=CONFIG, progress=StopAfter(30))
    region = shapely.box(1000, 1000, 2500, 2000)
    with pytest.raises(OutputMismatch, match="region or tissue"):
        peka.predict(slide, tiny_model, output=out, region=region, config=CONFIG)
    done = peka.predict(slide, tiny_model, output=out, region=region, config=CONFIG, overwrite=True)
    assert done.record["run"]["resumed_tiles"] == 0
    with pytest.raises(OutputMismatch, match="with another region or tissue"):
        peka.predict(slide, tiny_model, output=out, config=CONFIG)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_replaced(slide, tiny_model, tmp_path, overwrite):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "precious.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a napari-peka result"):
        peka.predict(slide, tiny_model, output=tmp_path / "a.zarr", config=CONFIG, overwrite=overwrite)
    assert [p.name for p in (tmp_path / "a.zarr").iterdir()] == ["precious.txt"]
    assert not (tmp_path / "a.zarr.partial").exists()


def test_an_interrupted_overwrite_loses_neither(whole, slide, tiny_model, tmp_path):
    out, region = tmp_path / "a.peka.zarr", shapely.box(500, 500, 3500, 2500)
    peka.predict(slide, tiny_model, output=out, config=CONFIG)
    again = {"region": region, "config": CONFIG, "overwrite": True}
    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=out, progress=StopAfter(30), **again)
    same(whole, peka.predict(slide, tiny_model, output=out, config=CONFIG))  # the old one is still there
    done = peka.predict(slide, tiny_model, output=out, **again)
    assert done.record["run"]["resumed_tiles"] >= 30
    assert len(done.tiles) < len(whole.tiles)
    assert not (tmp_path / "a.peka.zarr.partial").exists()


def test_a_kill_before_the_tidying_leaves_nothing_behind(whole, slide, tiny_model, tmp_path, monkeypatch):
    from napari_peka.core import files

    out = tmp_path / "a.peka.zarr"
    remove = files.remove_tree

    def killed(path):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as m:
        m.setattr(files, "remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            peka.predict(slide, tiny_model, output=out, config=CONFIG)
    assert (tmp_path / "a.peka.zarr.partial").exists()
    same(whole, peka.predict(slide, tiny_model, output=out, config=CONFIG))
    assert not (tmp_path / "a.peka.zarr.partial").exists()


def test_a_damaged_block_is_done_again(whole, slide, tiny_model, tmp_path):
    out = tmp_path / "a.peka.zarr"
    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=out, config=CONFIG, progress=StopAfter(30))
    some = sorted((tmp_path / "a.peka.zarr.partial").glob("blocks-*/*"))
    some[0].write_bytes(some[0].read_bytes()[:-7])
    same(whole, peka.predict(slide, tiny_model, output=out, config=CONFIG))


def test_a_full_disk_is_one_sentence_and_the_run_resumes(whole, slide, tiny_model, tmp_path, monkeypatch):
    out = tmp_path / "a.peka.zarr"
    real, count = os.fsync, iter(range(1000))

    def full(fd):
        if next(count) >= 4:
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="disk is full"):
            peka.predict(slide, tiny_model, output=out, config=CONFIG)
    assert not out.exists()
    same(whole, peka.predict(slide, tiny_model, output=out, config=CONFIG))


def test_two_runs_never_write_the_same_result(slide, tiny_model, tmp_path):
    from filelock import FileLock

    out = tmp_path / "a.peka.zarr"
    with FileLock(tmp_path / ".a.peka.zarr.lock"), pytest.raises(StoreError, match="another run"):
        peka.predict(slide, tiny_model, output=out, config=CONFIG)


class Scratched:
    """A slide of which a rectangle cannot be decoded."""

    def __init__(self, slide, y, x, h, w):
        self._slide, self._bad = slide, (y, x, y + h, x + w)

    def __getattr__(self, name):
        return getattr(self._slide, name)

    def read_block(self, rect, mpp=None):
        y0, x0, y1, x1 = self._bad
        if rect.y < y1 and y0 < rect.y1 and rect.x < x1 and x0 < rect.x1:
            raise Undecodable("scratched")
        return self._slide.read_block(rect, mpp)


def test_unreadable_tiles_are_nan_and_counted_never_white(whole, slide, tiny_model, tmp_path):
    progress = JobProgress()
    bad = peka.predict(
        Scratched(slide, 1400, 2000, 200, 300), tiny_model, output=tmp_path / "a.zarr", config=CONFIG, progress=progress
    )
    assert 0 < bad.n_unreadable < len(bad.tiles)
    assert np.isnan(bad.values("ERBB2")[~bad.read_ok]).all()
    ok = bad.read_ok
    # tiles of a partly readable block are read one by one: the same pixels to rounding, so the same values nearly
    np.testing.assert_allclose(bad.values("ERBB2")[ok], whole.values("ERBB2")[ok], atol=0.15)
    back = peka.read_prediction(tmp_path / "a.zarr")
    assert back.n_unreadable == bad.n_unreadable
    assert any("could not be decoded" in n for n in progress.notes)


def test_no_tissue_and_a_region_off_the_slide_are_said(slide, tiny_model, tmp_path):
    with pytest.raises(NoTissue, match="no tissue"):
        peka.predict(slide, tiny_model, region=shapely.box(0, 0, 200, 200), config=CONFIG)
    with pytest.raises(RegionError, match="outside"):
        peka.predict(slide, tiny_model, region=shapely.box(90000, 90000, 90100, 90100), config=CONFIG)


def test_running_out_of_memory_halves_the_batch_and_goes_on(slide, tiny_model, whole):
    import torch

    forward = peka.load_forward(tiny_model, CONFIG)
    seen = []

    def hook(_module, args):
        seen.append(len(args[0]))
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    forward.module.register_forward_pre_hook(hook)
    done = peka.predict(slide, tiny_model, forward=forward, config=CONFIG)
    assert seen[0] > 3
    assert max(seen[3:]) <= 3  # remembered, not tried again at each block
    np.testing.assert_allclose(done.values("ERBB2"), whole.values("ERBB2"), atol=0.05)


def test_an_error_in_reading_reaches_the_caller_and_leaves_no_thread(slide, tiny_model):
    import threading

    class Broken(Scratched):
        def read_block(self, rect, mpp=None):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        peka.predict(Broken(slide, 0, 0, 1, 1), tiny_model, config=CONFIG)
    assert not [t for t in threading.enumerate() if t.name.startswith("peka-read")]


def test_kill_9_at_random_moments_ends_with_the_same_numbers(tissue_tiff, bundle_folder, whole, tmp_path):
    command = [
        sys.executable, "-m", "napari_peka", "predict", str(tissue_tiff), "--model", str(bundle_folder),
        "-o", str(tmp_path),
        "--device", "cpu", "--precision", "fp32", "--batch-size", "8", "--json",
    ]  # fmt: skip
    out, rng = tmp_path / "tissue.peka.zarr", random.Random(7)
    partial = tmp_path / "tissue.peka.zarr.partial"
    kills = 0
    for _ in range(2):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(partial.glob("blocks-*/*.safetensors")))
        deadline = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < deadline:
            if len(list(partial.glob("blocks-*/*.safetensors"))) > before:
                time.sleep(rng.random() * 0.05)
                break
            time.sleep(0.002)
        if run.poll() is None:
            kills += 1
        run.send_signal(signal.SIGKILL) if hasattr(signal, "SIGKILL") else run.kill()
        run.wait()
    assert kills, "no run was killed: the test shows nothing"
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (entry,) = json.loads(result.stdout)
    assert entry["resumed_tiles"] > 0
    same(whole, peka.read_prediction(out))
