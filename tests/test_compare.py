"""Each arm is set against its own frozen baseline, pair by pair, with an interval that holds what it says."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from napari_peka.core.errors import SettingError
from napari_peka.training.compare import Arm, compare, markdown, write_table
from napari_peka.training.scoring import Part, Scoreboard

SECTIONS = {"P1": "P", "P2": "P", "Q1": "Q", "Q2": "Q"}


def board(pcc: np.ndarray, seeds: int = 1, sections: dict[str, str] = SECTIONS, hvg=None) -> Scoreboard:
    """Make a board of PCCs ``(n_sections, n_genes)``, repeated for each seed."""
    pcc = np.asarray(pcc, float)
    rows = np.concatenate([pcc] * seeds)
    return Scoreboard(
        parts=tuple(Part(s, p, s, k) for k in range(seeds) for s, p in sections.items()),
        genes=tuple(f"g{i}" for i in range(pcc.shape[1])),
        is_hvg50=np.ones(rows.shape, bool) if hvg is None else np.broadcast_to(hvg, rows.shape),
        metrics={"pcc": rows},
        baselines={},
        attainable=np.full(rows.shape, 0.8),
        coverage=np.full(rows.shape, np.nan),
        effective=np.full(rows.shape, 100.0),
    )


def arm(pcc, adapter="none", features="image", averaging="", context="", head="ridge", encoder="vits", **kwargs) -> Arm:
    seeds, hvg = kwargs.pop("seeds", 1), kwargs.pop("hvg", None)
    return Arm(encoder, adapter, features, averaging, context, head, board(pcc, seeds, hvg=hvg), **kwargs)


def row(table: pd.DataFrame, **where) -> pd.Series:
    (index,) = np.flatnonzero(np.all([table[k] == v for k, v in where.items()], axis=0))
    return table.iloc[index]


@pytest.fixture
def base() -> np.ndarray:
    return 0.4 + 0.1 * np.random.default_rng(0).normal(size=(4, 30))


def test_a_constant_gain_is_known_exactly(base):
    got = row(compare([arm(base), arm(base + 0.02, "bone", seeds=3)]), adapter="bone")
    assert got.frozen_pcc == pytest.approx(base.mean(), abs=1e-9)
    assert got.difference == pytest.approx(0.02, abs=1e-9)
    assert got.difference_ci95 == pytest.approx((0.02, 0.02), abs=1e-9)
    assert got.gain_percent == pytest.approx(2 / base.mean(), abs=1e-9)
    assert got.genes_improved == 1
    assert got.share_of_attainable == pytest.approx((base.mean() + 0.02) / 0.8, abs=1e-9)
    assert (got.n_patients, got.n_sections, got.n_seeds, got.n_genes) == (2, 4, 3, 30)
    low, high = got.pcc_ci95
    assert low < got.pcc < high, "genes and sections differ, and only the difference does not"


def test_pairing_tells_a_small_gain_that_apart_would_drown(base):
    rng = np.random.default_rng(1)
    got = row(compare([arm(base), arm(base + 0.02 + 0.01 * rng.normal(size=base.shape), "lora")]), adapter="lora")
    assert 0.01 < got.difference_ci95[0] < got.difference_ci95[1] < 0.03
    assert got.pcc_ci95[0] < got.frozen_pcc, "the arm's own interval holds the frozen score"
    nothing = row(compare([arm(base), arm(base + 0.05 * rng.normal(size=base.shape), "hra")]), adapter="hra")
    assert nothing.difference_ci95[0] < 0 < nothing.difference_ci95[1]


def test_an_arm_meets_the_frozen_one_of_its_own_averaging_context_and_head(base):
    arms = [
        arm(base), arm(base + 0.04, averaging="8 rotations"),
        arm(base + 0.05, "bone", averaging="8 rotations"),
        arm(base + 0.05, "bone", "image+peka", averaging="8 rotations"),
    ]  # fmt: skip
    table = compare(arms)
    assert row(table, adapter="bone", features="image").difference == pytest.approx(0.01)
    assert row(table, features="image+peka").difference == pytest.approx(0.01)
    for frozen in (row(table, adapter="none", averaging=a) for a in ("", "8 rotations")):
        assert np.isnan([frozen.difference, frozen.frozen_pcc, frozen.gain_percent, frozen.genes_improved]).all()
    for other in ({"context": "300 µm"}, {"head": "MLP"}, {"encoder": "vitl"}, {"smoothed": True}):
        with pytest.raises(SettingError, match="no frozen baseline under the same"):
            compare([*arms, arm(base, "bone", **other)])


def test_genes_without_a_score_in_one_arm_are_no_pair(base):
    gap = base + 0.02
    gap[:, 3] = np.nan
    gap[1, 4] = np.nan
    hvg = np.arange(30) < 20
    got = row(compare([arm(base, hvg=hvg), arm(gap, "bone", hvg=hvg)]), adapter="bone")
    assert got.n_genes == 19
    assert got.difference == pytest.approx(0.02, abs=1e-9)


def test_a_gain_over_nothing_has_no_percentage():
    zero = 0.001 * np.random.default_rng(2).normal(size=(4, 30))
    got = row(compare([arm(zero - zero.mean() - 0.01), arm(zero + 0.3, "bone")]), adapter="bone")
    assert got.difference > 0.25
    assert np.isnan(got.gain_percent)
    assert np.isnan(got.gain_percent_ci95).all()


def test_random_splits_stand_beside_grouped_ones(base):
    arms = [arm(base), arm(base + 0.02, "bone"), arm(base + 0.2, protocol="paper")]
    table = compare(arms)
    assert len(table) == 2
    assert row(table, adapter="none").pcc_random_split == pytest.approx(base.mean() + 0.2)
    assert row(table, adapter="none").random_split_flatters == pytest.approx(0.2)
    assert np.isnan(row(table, adapter="bone").random_split_flatters)
    alone = compare([arm(base, protocol="paper"), arm(base + 0.1, "bone", protocol="paper")])
    assert alone.protocol.tolist() == ["paper", "paper"]
    assert row(alone, adapter="bone").difference == pytest.approx(0.1)


def test_arms_that_cannot_be_compared_are_refused(base):
    with pytest.raises(SettingError, match="there twice"):
        compare([arm(base), arm(base)])
    with pytest.raises(SettingError, match="other sections or genes"):
        compare([arm(base), arm(base[:, :5], "bone")])


def test_an_arm_is_made_of_a_report(base):
    from napari_peka.training.evaluate import Measured, evaluate

    rng = np.random.default_rng(3)
    truth = rng.normal(size=(2, 50, 4)).astype(np.float32)
    measured = [
        Measured(s, "P", s, 0, tuple(map(str, range(50))), rng.normal(size=(50, 2)), t,
                 t + rng.normal(size=t.shape).astype(np.float32), np.full(4, 0.8)) for s, t in zip("AB", truth)
    ]  # fmt: skip
    report = evaluate(measured, list("abcd"), "u", hvg50=["a", "b"], model="m", split="s", optimistic=True)
    made = Arm.of_report(report, encoder="vits", adapter="none", features="image", averaging="", context="", head="h")
    assert made.protocol == "paper"
    assert compare([made]).pcc[0] == pytest.approx(report.summary["pcc_hvg50"]["mean"])


def test_the_table_is_written_for_machines_and_people(base, tmp_path):
    table = compare([arm(base), arm(base + 0.02, "bone"), arm(base + 0.1, protocol="paper")])
    write_table(table, tmp_path / "out")
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == ["comparison.csv", "comparison.json", "comparison.md"]
    csv = pd.read_csv(folder / "comparison.csv")
    assert csv.difference_ci95_low[1] == pytest.approx(0.02)
    assert csv.adapter.tolist() == ["none", "bone"]
    records = json.loads((folder / "comparison.json").read_text("utf-8"))
    assert records[0]["difference"] is None
    assert records[0]["difference_ci95"] == [None, None]
    assert records[1]["difference_ci95"] == pytest.approx([0.02, 0.02])
    lines = (folder / "comparison.md").read_text("utf-8").splitlines()
    assert len(lines) == 4
    assert "averaging" not in lines[0], "a column that says nothing is left out"
    assert "| +0.020 |" in lines[3]
    assert "| +0.020 to +0.020 |" in lines[3]
    assert "| 100 % |" in lines[3]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert markdown(table) == "\n".join(lines) + "\n"
