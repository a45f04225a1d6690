"""HEST-bench from its folders to its table, in a small stand-in of the same format."""

from __future__ import annotations

import json
import pickle

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")

from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from hest_files import GENES, write_task
from napari_peka.config import BenchmarkConfig, TrainConfig
from napari_peka.core.errors import OutputMismatch, SectionError, SettingError
from napari_peka.core.progress import JobProgress
from napari_peka.training.hest import HEST_UNIT, is_hest_bench, read_hest_task
from napari_peka.training.hest_paired import Patches, pair_task, task_folds
from napari_peka.training.targets import expression
from napari_peka.workflows.folds import Ceilings, Split, embed_all, provenance, set_goal
from napari_peka.workflows.hest import OWN_PCC, benchmark_hest, hest_markdown, hest_settings

#: the second split holds two samples out together
FOLDS = [(["B", "C"], ["A"]), (["A"], ["B", "C"])]
FROZEN = BenchmarkConfig(
    encoders=["tiny-random"], adapters=["none"], rotations=[1], train=TrainConfig(precision="fp32", device="cpu")
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    write_task(root / "IDC", FOLDS)
    write_task(root / "PAAD", [(["T1"], ["T2"]), (["T2"], ["T1"])], seed=1)
    return root


@pytest.fixture(scope="module")
def table(bench, tmp_path_factory):
    """Both tasks, frozen."""
    output = tmp_path_factory.mktemp("out") / "table"
    return benchmark_hest(bench, FROZEN, output=output), output


def test_a_folder_is_known_by_its_splits(bench, tmp_path):
    assert is_hest_bench(bench)
    assert is_hest_bench(bench / "IDC")
    assert not is_hest_bench(tmp_path)
    assert not is_hest_bench(bench / "IDC" / "patches")


def test_spots_patches_and_counts_belong_together(bench):
    task = read_hest_task(bench / "IDC")
    progress = JobProgress()
    paired = pair_task(task, progress=progress)
    assert len(paired) == 3 * 34
    assert any("names no patients" in note for note in progress.notes)
    # patches were painted with the redness that the second gene follows
    red = paired.bank.read(np.arange(len(paired)))[..., 0].mean((1, 2))
    erbb2 = paired.counts[:, paired.genes.index("ERBB2")].toarray().ravel()
    assert np.corrcoef(red, erbb2)[0, 1] > 0.7
    # 400 source px of 0.25 µm from spot to spot
    near = paired.neighbours(101).counts
    assert near.max() == 4
    # B and C are held out together, and may be of one patient
    assert dict(zip(paired.section, paired.patient)) == {"A": "split 0", "B": "split 1", "C": "split 1"}
    assert [set(paired.section[f.test]) for f in task_folds(task, paired)] == [{"A"}, {"B", "C"}]
    one = anndata.read_h5ad(task.sections["A"].expression)
    rows = paired.section == "A"
    ids = [i for i, r in zip(paired.spot_ids, rows) if r]
    np.testing.assert_array_equal(paired.totals[rows], np.asarray(one[ids].X.sum(1)).ravel())


def test_what_sections_are_asked_for_is_there(bench):
    task = read_hest_task(bench / "IDC")
    paired = pair_task(task)
    said = provenance(paired)
    assert [s["name"] for s in said] == list(task.sections)
    assert said[0]["mpp"] == [0.25, 0.25]
    assert len({s["fingerprint"] for s in said}) == 3
    config = hest_settings(TrainConfig(), task)
    goal = set_goal(paired, Split("section", task_folds(task, paired), False, ""), config)
    assert set(goal.genes) == set(GENES)
    ceiling = Ceilings(paired, goal, config.unit).of(np.flatnonzero(paired.section == "B"))
    assert 0.3 < ceiling[goal.genes.index("ERBB2")] <= 1


def test_the_unit_divides_by_no_total(bench):
    paired = pair_task(read_hest_task(bench / "PAAD"))
    np.testing.assert_allclose(
        expression(paired.counts, paired.totals, HEST_UNIT), np.log1p(paired.counts.toarray()), rtol=1e-6
    )


def test_the_figure_is_that_of_hest_benchs_own_code(bench, table):
    """Standardise, PCA, ridge of 100 / (D G) without intercept, PCC over a split's test spots, means."""
    task = read_hest_task(bench / "IDC")
    paired = pair_task(task, 64)
    y = np.log1p(paired.counts[:, [paired.genes.index(g) for g in GENES]].toarray())
    x = frozen_features(paired)
    scores = []
    for fold in task_folds(task, paired):
        scale = StandardScaler().fit(x[fold.train])
        # fewer spots than 256: as many components as there are
        pca = PCA(min(fold.train.sum() - 1, x.shape[1]), svd_solver="full").fit(scale.transform(x[fold.train]))
        train, test = (pca.transform(scale.transform(x[rows])) for rows in (fold.train, fold.test))
        ridge = Ridge(alpha=100 / (256 * len(GENES)), fit_intercept=False).fit(train, y[fold.train])
        predicted = ridge.predict(test)
        scores.append(np.mean([np.corrcoef(predicted[:, j], y[fold.test, j])[0, 1] for j in range(len(GENES))]))
    rows = table[0][table[0]["task"] == "IDC"]
    assert rows[OWN_PCC].tolist() == pytest.approx([np.mean(scores)], abs=2e-3)


def frozen_features(paired):
    import torch

    from napari_peka.models.registry import AdapterSpec
    from napari_peka.training.learn import Learnt, card_of, load_encoder
    from napari_peka.training.learner import History

    config = TrainConfig(encoder="tiny-random", adapter="none")
    card = card_of(config)
    learnt = Learnt(load_encoder(card), None, card, AdapterSpec("none"), {}, History(), {})
    return embed_all(learnt, paired, config, torch.device("cpu"), torch.float32).astype(np.float64)


def test_one_table_of_all_tasks_and_one_of_each(table):
    found, output = table
    assert found["task"].tolist() == ["IDC", "PAAD"]
    assert found["n_genes"].tolist() == [4, 4]
    assert found["n_sections"].tolist() == [3, 2]
    # two samples that are held out together are no two patients
    assert found["n_patients"].tolist() == [2, 2]
    assert found["head"].str.contains("0.09765625").all()
    written = pd.read_csv(output / "benchmark.csv")
    assert written["task"].tolist() == ["IDC", "PAAD"]
    np.testing.assert_allclose(written[OWN_PCC], found[OWN_PCC], atol=1e-5)
    text = (output / "benchmark.md").read_text()
    assert text == hest_markdown(found)
    assert "| IDC | PAAD | mean |" in text
    assert f"{found[OWN_PCC].mean():.3f} |" in text
    page = (output / "IDC" / "benchmark.html").read_text()
    assert "names no patients" in page
    assert len(json.loads((output / "PAAD" / "benchmark.json").read_text())) == 1


def test_an_adapter_is_compared_with_its_frozen_encoder(bench, tmp_path):
    train = TrainConfig(precision="fp32", device="cpu", epochs=1, clusters=3, batch_size=16, validation_share=0.3)
    config = BenchmarkConfig(encoders=["tiny-random"], adapters=["lora"], rotations=[1], train=train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_peka.training.pseudo_labels.MIN_STEPS", 50)
        found = benchmark_hest(bench / "PAAD", config, output=tmp_path / "out")
    assert found["adapter"].tolist() == ["none", "lora"]
    assert np.isfinite(found[OWN_PCC]).all()
    assert np.isfinite(found["difference"].iloc[1])
    assert not (tmp_path / "out.partial").exists()


def test_a_read_out_that_was_chosen_is_taken(bench):
    task = read_hest_task(bench / "IDC")
    own = hest_settings(TrainConfig(), task)
    assert (own.ridge_alpha, own.n_components, own.unit) == (100 / (256 * 4), 256, HEST_UNIT)
    assert (own.depth_power, own.centre_sections, own.target_rank) == (0, False, None)
    assert own.genes == list(GENES)
    chosen = hest_settings(TrainConfig(ridge_alpha="groups", target_rank=20, unit="log1p CP10K"), task)
    assert (chosen.ridge_alpha, chosen.target_rank, chosen.unit) == ("groups", 20, "log1p CP10K")
    assert chosen.centre_sections is False


@pytest.mark.parametrize("given", [{"hold_out": "section"}, {"mpp": 1.0}, {"views": [1.0, 2.0]}, {"min_counts": 5}])
def test_what_the_files_decide_is_not_taken_from_settings(bench, tmp_path, given):
    config = BenchmarkConfig(encoders=["tiny-random"], adapters=["none"], train=TrainConfig(**given))
    with pytest.raises(SettingError, match=f"{next(iter(given))} = .* leave {next(iter(given))} away"):
        benchmark_hest(bench, config, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_settings_do_not_resume_it(bench, table, tmp_path):
    _, output = table
    with pytest.raises(OutputMismatch, match="is there already"):
        benchmark_hest(bench, FROZEN, output=output)
    with pytest.raises(SettingError, match="holds no HEST-bench task"):
        benchmark_hest(bench / "IDC" / "patches", FROZEN, output=tmp_path / "out")


def test_patches_go_to_another_process_and_to_another_size(bench):
    section = read_hest_task(bench / "IDC").sections["A"]
    own, small = Patches(section, 224), Patches(section, 64)
    again = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(again[3], section.tiles()[3])
    assert small.shape == (34, 64, 64, 3)
    assert small[2].mean() == pytest.approx(own[2].mean(), abs=0.5)
    np.testing.assert_array_equal(small[:][5], small[5])


def test_damaged_and_incomplete_samples_are_said(tmp_path):
    task = read_hest_task(write_task(tmp_path / "IDC", FOLDS))
    with h5py.File(task.sections["A"].patches, "r+") as f:
        images = f["img"][:, :100]
        del f["img"]
        f["img"] = images
    with pytest.raises(SectionError, match="those of HEST-bench are 224 px"):
        pair_task(task)
    task = read_hest_task(write_task(tmp_path / "PAAD", FOLDS))
    adata = anndata.read_h5ad(task.sections["B"].expression)
    barcode = task.sections["B"].barcodes()[0]
    adata.X[adata.obs_names.get_loc(barcode)] = 0
    adata.write_h5ad(task.sections["B"].expression)
    with h5py.File(task.sections["B"].patches, "r+") as f:
        del f["img"].attrs["patch_size"]
    paired = pair_task(task)
    assert "B: 1 of 34 spots have no counts and are left out" in paired.warnings
    assert any("µm per pixel of B are not known" in w for w in paired.warnings)
    assert barcode not in paired.spot_ids
