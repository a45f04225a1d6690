"""The report: numbers by hand, honest at its edges, whole on disk, and no protocol that leaks."""

from __future__ import annotations

import json
import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import cKDTree

from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import SettingError, StoreError, UnknownName
from napari_peka.training import splits
from napari_peka.training.bootstrap import interval, resampled_means
from napari_peka.training.ceiling import attainable_pcc
from napari_peka.training.evaluate import EvaluationReport, Measured, evaluate, plain, read_report

GENES = ("ERBB2", "NA", "COL1A1")
SPLIT = "sections left out in turn"


def part(truth, predicted, *, section="A", patient="P", fold="A", seed=0, attainable=None, **baselines) -> Measured:
    truth, predicted = np.array(truth, np.float32), np.array(predicted, np.float32)
    n, g = truth.shape
    return Measured(
        section_id=section,
        patient_id=patient,
        fold=fold,
        seed=seed,
        spot_ids=tuple(f"s{i}" for i in range(n)),
        centre_um=np.column_stack([np.arange(n), np.arange(n)]) * 100.0,
        truth=truth,
        predicted=predicted,
        attainable=np.full(g, 0.8) if attainable is None else np.array(attainable),
        baselines={k: np.array(v, np.float32) for k, v in baselines.items()},
    )


def noisy(rng, r: float, *, n: int = 400, g: int = 3, **kwargs) -> Measured:
    """Return a part whose PCC is about `r` for every gene."""
    truth = rng.normal(size=(n, g))
    predicted = r * truth + np.sqrt(1 - r**2) * rng.normal(size=(n, g))
    return part(truth, predicted, **kwargs)


def report_of(measured, **kwargs) -> EvaluationReport:
    options = {"hvg50": GENES[:2], "model": "m", "split": SPLIT, **kwargs}
    return evaluate(measured, GENES, "log1p CP10K", **options)


@pytest.mark.parametrize(
    ("name", "less", "says"),
    [
        ("before", 0.2, None),
        ("before", 0.0, "the model as it was before scores .* the refit has gained nothing in PCC"),
        ("before", -0.2, "the refit made it worse"),
        ("colour", 0.2, None),
        ("colour", 0.0, "the baseline colour scores .* the model has learnt no more than that"),
        ("colour", -0.2, "the baseline colour scores .* the model is worse than that"),
    ],
)
def test_a_baseline_that_is_not_beaten_is_said_and_a_tie_is_a_tie(name, less, says):
    rng = np.random.default_rng(0)
    mine, other = noisy(rng, 0.6), noisy(rng, 0.6 - less)
    # another model of the same spots, as good up to rounding where it is a tie
    predicted = mine.predicted if not less else (0.6 - less) * mine.truth + 0.8 * (other.predicted - other.truth)
    report = report_of([part(mine.truth, mine.predicted, **{name: predicted + 1e-4})])
    found = [w for w in report.warnings if "PCC, HVG50" in w]
    assert len(found) == (says is not None), report.warnings
    if says:
        assert re.search(says, found[0])


# ---------------------------------------------------------------- numbers


def test_numbers_by_hand():
    """Two folds of section A (PCC 7/sqrt(70) and 1 for ERBB2), one of B; the second gene mirrors, the third is flat."""
    t, p = [0, 1, 2, 3], [1, 0, 2, 5]
    flat = [2, 2, 2, 2]
    r = 7 / np.sqrt(70)
    measured = [
        part(np.transpose([t, t, flat]), np.transpose([p, np.negative(p), t]), fold="f1"),
        part(
            np.transpose([t, t, flat]), np.transpose([t, np.negative(t), t]), fold="f2", attainable=[0.4, 0.8, np.nan]
        ),
        part(
            np.transpose([t, t, flat]), np.transpose([flat, t, t]), fold="f1", section="B", attainable=[0.8, 0.1, 0.1]
        ),
    ]
    half = np.array([1.0, 1.5, np.nan], np.float32)
    report = report_of(measured, intervals=Intervals(np.array([0.05, 0.95]), np.stack([-half, half])))
    genes = report.genes.set_index("gene")
    # section A: mean of its folds; B: a constant prediction scores 0; then the mean of both
    assert genes.pcc["ERBB2"] == pytest.approx(((r + 1) / 2 + 0) / 2, abs=1e-9)
    assert genes.pcc["NA"] == pytest.approx(((-r - 1) / 2 + 1) / 2, abs=1e-9)
    assert np.isnan(genes.pcc["COL1A1"])
    assert genes.n_scored.tolist() == [3, 3, 0]
    assert genes.hvg50.tolist() == [True, True, False]
    assert genes.pcc_sd["ERBB2"] == pytest.approx(np.std([r, 1, 0], ddof=1), abs=1e-9)
    assert genes.attainable_pcc.tolist() == pytest.approx([(0.6 + 0.8) / 2, (0.8 + 0.1) / 2, (0.8 + 0.1) / 2], abs=1e-9)
    assert genes.share_of_attainable["ERBB2"] == pytest.approx(genes.pcc["ERBB2"] / 0.7, abs=1e-9)
    # ERBB2 errors: 1 1 0 2 and none in A, 2 1 0 1 in B; within 1.0: 3 of 4, 4 of 4, 3 of 4
    assert genes.coverage_90["ERBB2"] == pytest.approx(((0.75 + 1) / 2 + 0.75) / 2, abs=1e-9)
    assert np.isnan(genes.coverage_90["COL1A1"])
    s = report.summary
    assert s["pcc_hvg50"]["mean"] == pytest.approx((0 + 0.5) / 2, abs=1e-9)
    # fold f1: A 0, B 0.5; fold f2: A 0
    assert s["pcc_hvg50"]["sd"] == pytest.approx(np.std([0.25, 0], ddof=1), abs=1e-9)
    assert s["sd_over"] == "folds and seeds"
    assert s["ci95_over"] == ["sections", "genes"]
    assert s["attainable_hvg50"] == pytest.approx((0.7 + 0.45) / 2, abs=1e-9)
    assert s["share_of_attainable_hvg50"] == pytest.approx(0.25 / 0.575, abs=1e-9)
    assert report.n_spots == 8
    assert report.sections.n_constant.tolist() == [1, 1, 1]
    assert report.sections.section.tolist() == ["A", "A", "B"]
    assert any("1 of 3 genes do not vary over the held-out spots of A" in w for w in report.warnings)


def test_each_fold_has_its_own_variable_genes():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 3))
    measured = [
        part(truth, truth * [1, -1, 1], fold="f1"),
        part(truth, truth * [1, -1, 1], fold="f2", section="B"),
    ]
    report = report_of(measured, hvg50={"f1": ["ERBB2"], "f2": ["NA"]})
    assert report.summary["pcc_hvg50"]["mean"] == pytest.approx(0)
    assert report.sections.pcc_hvg50.tolist() == pytest.approx([1, -1])
    assert report.hvg50 == ("ERBB2", "NA")
    with pytest.raises(SettingError, match="fold f2"):
        report_of(measured, hvg50={"f1": ["ERBB2"]})


def test_baselines_are_scored_and_named_when_they_win():
    rng = np.random.default_rng(1)
    m = noisy(rng, 0.3)
    flat = np.ones_like(m.truth)
    report = report_of([part(m.truth, m.predicted, train_mean=flat, colour=m.truth * 2, position=-m.truth)])
    scores = {k: v["pcc_hvg50"]["mean"] for k, v in report.summary["baselines"].items()}
    assert scores == pytest.approx({"train_mean": 0, "colour": 1, "position": -1})
    assert report.summary["baselines"]["train_mean"]["mse_hvg50"]["mean"] == pytest.approx(
        ((m.truth[:, :2] - 1) ** 2).mean(), rel=1e-6
    )
    assert next(w for w in report.warnings if "baseline" in w).startswith("the baseline colour scores 1.000")
    assert not any("position" in w for w in report.warnings)


def test_flatterers_are_marked_everywhere():
    m = noisy(np.random.default_rng(2), 0.5)
    plain_one = report_of([m])
    flagged = report_of([m], neighbour_smoothing=True, optimistic=True, warnings=["mine"])
    for word, flag in (("averaged over neighbouring", "neighbour_smoothing"), ("at random", "optimistic")):
        assert any(word in w for w in flagged.warnings)
        assert flagged.document()[flag] is True
        assert not any(word in w for w in plain_one.warnings)
        assert plain_one.document()[flag] is False
    assert flagged.warnings[0] == "mine"
    above = report_of([part(m.truth, m.truth)])
    assert any("above the noise ceiling" in w for w in above.warnings)


def test_what_was_not_predicted_is_left_out_and_said():
    m = noisy(np.random.default_rng(3), 0.6)
    holed = m.predicted.copy()
    holed[:7] = np.nan
    report = report_of([part(m.truth, holed), part(m.truth, holed, seed=1)])
    lost = [w for w in report.warnings if "could not be predicted" in w]
    assert lost == ["7 of 400 spots of A could not be predicted and are left out"]
    assert report.genes.pcc[0] == pytest.approx(np.corrcoef(m.truth[7:, 0], holed[7:, 0])[0, 1], abs=1e-6)


def test_one_run_of_one_section_has_no_sd_and_says_what_its_interval_means():
    report = report_of([noisy(np.random.default_rng(4), 0.5)])
    assert report.summary["pcc_hvg50"]["sd"] is None
    assert report.summary["ci95_over"] == ["genes"]
    assert any("of genes of one section, not of other patients" in w for w in report.warnings)
    assert report.summary["coverage_90"] is None


# ---------------------------------------------------------------- what does not fit


def test_what_does_not_fit_is_refused():
    m = noisy(np.random.default_rng(5), 0.5)
    with pytest.raises(SettingError, match="nothing to evaluate"):
        report_of([])
    with pytest.raises(SettingError, match="do not fit 3 genes"):
        report_of([part(m.truth[:, :2], m.predicted[:, :2])])
    with pytest.raises(SettingError, match="two patients"):
        report_of([m, part(m.truth, m.predicted, patient="Q", fold="B")])
    with pytest.raises(SettingError, match="other baselines"):
        report_of([m, part(m.truth, m.predicted, fold="B", colour=m.truth)])
    with pytest.raises(SettingError, match="unique"):
        evaluate([m], ["A", "A", "B"], "u", hvg50=["A"], model="m", split="s")
    with pytest.raises(UnknownName, match="did you mean ERBB2"):
        report_of([m], hvg50=["ERBB3"])
    with pytest.raises(SettingError, match="section A: predicted has shape"):
        part(m.truth, m.predicted[1:])


# ---------------------------------------------------------------- the interval


def test_the_bootstrap_covers_what_it_speaks_of():
    """Sections differ (sd 0.1), genes differ (sd 0.1): a 95 % interval of 8 sections holds the mean mostly."""
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(60):
        values = 0.4 + 0.1 * rng.normal(size=(8, 1)) + 0.1 * rng.normal(size=(1, 50)) + 0.05 * rng.normal(size=(8, 50))
        low, high = interval(resampled_means(values[None], [f"p{i}" for i in range(8)], repeats=300)[:, 0])
        held += low <= 0.4 <= high
    assert held >= 48


def test_the_bootstrap_resamples_every_level_that_is_there():
    rng = np.random.default_rng(7)
    flat = np.full((1, 4, 30), 0.5)

    def width(values, patients):
        low, high = interval(resampled_means(values, patients)[:, 0])
        return high - low

    assert width(flat, ["p"] * 4) == 0
    sections = flat + np.array([-0.2, -0.1, 0.1, 0.2])[None, :, None]
    genes = flat + 0.2 * rng.normal(size=(1, 1, 30))
    assert width(sections, ["p"] * 4) > 0.1
    assert width(genes, ["p"] * 4) > 0.05
    # sections of a patient alike: four patients of two know less than eight of one
    pairs = np.repeat(rng.normal(size=(1, 4, 1)), 2, axis=1) + np.zeros(30)
    nested, apart = (resampled_means(pairs, patients) for patients in (list("ppqqrrss"), list("pqrstuvw")))
    assert nested.std() > 1.2 * apart.std()


def test_tables_are_resampled_alike_and_gaps_are_left_out():
    rng = np.random.default_rng(8)
    a = rng.normal(size=(3, 20))
    means = resampled_means(np.stack([a + 0.1, a]), ["p", "p", "q"], seed=1)
    np.testing.assert_allclose(means[:, 0] - means[:, 1], 0.1)
    a[1] = np.nan  # a section without scores
    holed = resampled_means(a[None], ["p", "p", "q"], seed=1)
    # a draw of nothing but that section has no mean: p twice (1/4), then that section four times (1/16)
    assert np.isnan(holed).mean() == pytest.approx(1 / 64, abs=0.01)
    assert np.nanmean(holed) == pytest.approx(np.nanmean(a[[0, 2]]), abs=0.05)
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()


# ---------------------------------------------------------------- on disk


@pytest.fixture
def full() -> EvaluationReport:
    rng = np.random.default_rng(9)
    measured = [noisy(rng, 0.4, section=s, patient=s[0], fold=s, seed=k) for s in ("P1", "P2", "Q1") for k in range(2)]
    measured = [part(m.truth, m.predicted, section=m.section_id, patient=m.patient_id, fold=m.fold, seed=m.seed,
                     attainable=[0.8, np.nan, 0.6], train_mean=np.ones_like(m.truth)) for m in measured]  # fmt: skip
    return report_of(
        measured,
        curves=[{"fold": "P1", "seed": 0, "epoch": 1, "train_loss": np.float32(2.5), "val_loss": float("nan")}],
        provenance={"adapter": "bone", "mpp": np.array([0.5, 0.5])},
    )


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the drawing of the page, which has tests of its own."""

    def write_html(report, path, *, beside):
        path.write_text(" beside ".join(r.split for r in (report, beside) if r))

    monkeypatch.setitem(sys.modules, "napari_peka.training.report", types.SimpleNamespace(write_html=write_html))


def test_the_files_follow_their_contract(full, tmp_path):
    full.write(tmp_path / "deep" / "report")
    folder = tmp_path / "deep" / "report"
    assert sorted(p.name for p in folder.iterdir()) == ["genes.csv", "report.html", "report.json"]
    text = (folder / "report.json").read_text("utf-8")
    assert "NaN" not in text.replace('"NA"', "")
    document = json.loads(text)
    for key in ("schema", "model", "sections", "split", "n_spots", "n_genes", "unit", "summary"):
        assert document[key] is not None, key
    assert document["n_genes"] == 3
    assert document["n_spots"] == 1200
    for where in (document["summary"], document):
        assert 0 < where["attainable_hvg50"] < 1
        assert where["share_of_attainable_hvg50"] > 0
        assert set(where["baselines"]["train_mean"]["pcc_hvg50"]) == {"mean", "sd", "ci95"}
        assert "coverage_90" in where
    for key in ("pcc_hvg50", "pcc_all"):
        score = document["summary"][key]
        low, high = score["ci95"]
        assert low <= score["mean"] <= high
        assert score["sd"] > 0
    assert document["curves"] == [{"fold": "P1", "seed": 0, "epoch": 1, "train_loss": 2.5, "val_loss": None}]
    genes = pd.read_csv(folder / "genes.csv", keep_default_na=False)
    wanted = ["gene", "pcc", "spearman", "mse", "mae", "r2", "attainable_pcc", "coverage_90"]
    assert list(genes.columns[:8]) == wanted
    assert genes.gene.tolist() == list(GENES)


def test_a_written_report_reads_back(full, undrawn, tmp_path):
    full.write(tmp_path)
    again = read_report(tmp_path)
    assert again.summary == full.summary
    for name in ("model", "unit", "split", "n_spots", "hvg50", "warnings", "optimistic"):
        assert getattr(again, name) == getattr(full, name), name
    pd.testing.assert_frame_equal(again.genes, full.genes, rtol=1e-5)
    pd.testing.assert_frame_equal(again.sections, full.sections, check_dtype=False)
    assert again.measured == ()
    assert again.document() == json.loads((tmp_path / "report.json").read_text("utf-8"))


def test_a_report_that_cannot_be_drawn_is_no_report(full, tmp_path, monkeypatch):
    def write_html(_report, _path, *, beside):
        raise StoreError("the disk is full")

    monkeypatch.setitem(sys.modules, "napari_peka.training.report", types.SimpleNamespace(write_html=write_html))
    with pytest.raises(StoreError, match="disk is full"):
        full.write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["genes.csv"]
    with pytest.raises(StoreError, match="no report in"):
        read_report(tmp_path)


def test_the_page_shows_another_split_beside(full, undrawn, tmp_path):
    full.write(tmp_path, beside=report_of(full.measured, split="spots at random", optimistic=True))
    assert (tmp_path / "report.html").read_text() == "sections left out in turn beside spots at random"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "damaged"), ("[]", "schema 1"), ('{"schema": 99}', "schema 1"), ('{"schema": 1}', "lacks 'sections'")],
)
def test_what_is_no_report_is_said(full, undrawn, tmp_path, content, words):
    full.write(tmp_path)
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(StoreError, match=words):
        read_report(tmp_path)


def test_plain_values():
    value = {"a": (np.int64(1), np.float32("nan"), np.bool_(True)), 2: {"x": np.array([np.inf, 1.5])}, "p": None}
    assert plain(value) == {"a": [1, None, True], "2": {"x": [None, 1.5]}, "p": None}
    assert plain([np.str_("é")]) == ["é"]


# ---------------------------------------------------------------- leaks


def tumour(n_side: int = 14, n_sections: int = 4, n_genes: int = 40, seed: int = 0):
    """Return spots of two patients' sections: smooth hidden features, counts that follow them, and the truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n_side, :n_side]
    grid = np.column_stack([y.ravel(), x.ravel()]) * 200.0
    load = rng.normal(size=(5, n_genes))
    sections, centres, hidden = [], [], []
    for k in range(n_sections):
        wave = rng.normal(size=(5, 2)) / 600
        hidden.append(np.sin(grid @ wave.T + rng.uniform(0, 6, 5)))
        centres.append(grid)
        sections += [f"S{k}"] * len(grid)
    hidden = np.concatenate(hidden)
    rate = np.exp(0.6 * hidden @ load) * np.geomspace(2, 30, n_genes)
    counts = rng.poisson(rate)
    expression = np.log1p(rate / rate.sum(1, keepdims=True) * 1e4)
    return sections, np.concatenate(centres), hidden, counts, expression


def log_cp10k(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def folds_of(protocol: str, sections, centre):
    patients = [f"P{int(s[1]) % 2}" for s in sections]
    return patients, {
        "patient": lambda: splits.by_patient(patients),
        "section": lambda: splits.by_section(sections),
        "block": lambda: splits.by_block(sections, centre),
        "named": lambda: [splits.named(["S1"], sections, patients)],
        "paper": lambda: splits.paper(len(sections), 0),
    }[protocol]()


def judged(protocol: str, features: np.ndarray, truth: np.ndarray, sections, centre) -> EvaluationReport:
    """Predict each held-out spot by the nearest training spot: nothing remembers better, so nothing leaks more."""
    patients, folds = folds_of(protocol, sections, centre)
    own, measured = np.array(sections), []
    for fold in folds:
        nearest = cKDTree(features[fold.train]).query(features)[1]
        predicted = truth[fold.train][nearest]
        for s in dict.fromkeys(own[fold.test]):
            rows = np.flatnonzero(fold.test & (own == s))
            measured.append(
                Measured(s, patients[rows[0]], fold.name, 0, tuple(map(str, rows)), centre[rows], truth[rows],
                         predicted[rows], np.full(truth.shape[1], 0.9))
            )  # fmt: skip
    genes = [f"g{i}" for i in range(truth.shape[1])]
    return evaluate(measured, genes, "log1p CP10K", hvg50=genes, model="m", split=protocol,
                    optimistic=folds[0].optimistic)  # fmt: skip


@pytest.mark.parametrize("protocol", ["patient", "section", "block", "named", "paper"])
def test_shuffled_pairs_score_nothing_and_true_pairs_do(protocol):
    sections, centre, hidden, counts, _ = tumour()
    truth = log_cp10k(counts).astype(np.float32)
    true = judged(protocol, hidden, truth, sections, centre)
    assert true.summary["pcc_hvg50"]["mean"] > 0.5
    order = np.random.default_rng(1).permutation(len(truth))
    shuffled = judged(protocol, hidden, truth[order], sections, centre)
    assert abs(shuffled.summary["pcc_hvg50"]["mean"]) < 0.06
    assert shuffled.optimistic == (protocol == "paper")


def test_random_spots_flatter_what_only_knows_the_place():
    """Position predicts a neighbour's expression: the paper's protocol takes it for skill, held-out blocks do not."""
    sections, centre, _, counts, _ = tumour(n_sections=1)
    truth = log_cp10k(counts).astype(np.float32)
    score = {p: judged(p, centre, truth, sections, centre).summary["pcc_hvg50"]["mean"] for p in ("paper", "block")}
    assert score["paper"] > score["block"] + 0.2


def test_a_perfect_prediction_has_all_that_is_attainable():
    sections, _, _, counts, expression = tumour(n_side=24, n_sections=2)
    own = np.array(sections)
    measured = []
    for s in ("S0", "S1"):
        rows = own == s
        ceiling = attainable_pcc(sparse.csr_matrix(counts[rows]))
        measured.append(part(log_cp10k(counts[rows]), expression[rows], section=s, fold=s, attainable=ceiling))
    genes = [f"g{i}" for i in range(counts.shape[1])]
    report = evaluate(measured, genes, "log1p CP10K", hvg50=genes, model="truth", split="none")
    assert report.summary["share_of_attainable_hvg50"] == pytest.approx(1, abs=0.02)
    shares = report.genes.share_of_attainable.dropna()
    assert shares.between(0.85, 1.2).all()
