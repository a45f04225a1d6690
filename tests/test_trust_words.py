"""How far to believe a map, in words and as opacity: plain, without what is unknown, and never better than it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_peka.core.doubt import FAINT, OUTSIDE, Intervals, opacity
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.io.figure import set_trust_text
from napari_peka.io.prediction import Prediction
from napari_peka.io.trust import (
    NOT_SHOWN,
    gene_trust,
    interval_width,
    legend,
    ood_sentence,
    percent,
    tile_opacity,
    trust_text,
    why_not_shown,
)

GENES = ("GOOD", "WEAK", "LOST")


def floats(*values):
    return np.array(values, np.float32)


def made(**changes) -> Prediction:
    """A map of 100 tiles and three genes, of which everything is known."""
    tiles = TileTable.grid((640, 640), (0.5, 0.5), TileSpec(64, 0.5))
    rng = np.random.default_rng(0)
    head = GeneHead(
        rng.normal(size=(4, 3)).astype(np.float32), floats(5, 5, 5), GENES, "log1p CP10K", pcc=floats(0.53, 0.2, 0.12),
        pcc_low=floats(0.41, 0.12, 0.02), pcc_high=floats(0.63, 0.3, 0.21), attainable_pcc=floats(0.8, 0.15, 0.62),
        baseline_pcc_high=floats(0.3, 0.1, 0.18),
    )  # fmt: skip
    ood = np.linspace(0, 95, 100, dtype=np.float32)
    ood[-3:] = OUTSIDE
    quantiles = np.array([[-0.6, -0.4, -2], [0, 0, 0], [0.6, 0.9, 2]], np.float32)
    known = {
        "record": {"model": {"name": "m", "pcc_split": "4 sections of patient C"}, "slide": {"name": "s"}},
        "ood": ood,
        "spread": np.ones(100, np.float32),
        "intervals": Intervals(np.array([0.05, 0.5, 0.95]), quantiles, 0.0),
    }
    embeddings = rng.normal(size=(100, 4)).astype(np.float16)
    return Prediction(tiles, embeddings, head, np.ones(100, bool), **(known | changes))


def test_the_legend_says_all_that_is_known():
    assert legend(made(), "good", hatched=True) == [
        "Held-out PCC 0.53 (0.41 to 0.63; 4 sections of patient C), good; at best 0.80 could be reached.",
        "9 of 10 measured values lie within about ±0.6 log1p CP10K of the map.",
        "3 % of the tiles are unlike the training data (hatched): do not believe the map there.",
    ]


def test_the_legend_leaves_out_what_is_unknown():
    bare = made(ood=None, spread=None, intervals=None, record={})
    nothing = dict.fromkeys(bare.head.measured)
    bare.head = dataclasses.replace(bare.head, **(nothing | {"pcc": floats(0.53, np.nan, 0.1)}))
    assert legend(bare, "GOOD") == ["Held-out PCC 0.53, good."]
    assert legend(bare, "WEAK") == ["Held-out PCC not measured: nobody knows how far to believe this map."]


def test_the_legend_warns_of_a_gene_that_was_not_shown():
    first = legend(made(), "LOST")[0]
    assert first.startswith(f"This gene was {NOT_SHOWN}")
    assert "0.12 (0.02 to 0.21)" in first
    assert "reach up to 0.18" in first
    assert "at best 0.62" in first


def test_intervals_in_words():
    told = made()
    assert "between 0.4 below and 0.9 log1p CP10K above" in legend(told, "WEAK")[1]
    told.spread = np.full(100, 2, np.float32)
    assert "±1.2 log1p" in legend(told, "GOOD")[1]
    assert "read areas" in legend(told, "GOOD", reach=2.3)[1]
    assert "read areas" not in legend(told, "GOOD", reach=2.5)[1]
    told.intervals = Intervals(np.array([0.25, 0.5, 0.75]), told.intervals.quantiles, 0.0)
    assert len(legend(told, "GOOD")) == 2, "intervals of 50 % tell nothing of 90 %"


def test_tiles_in_words():
    assert ood_sentence(made(ood=None)) == ""
    assert ood_sentence(made(ood=np.full(100, np.nan, np.float32))) == ""
    assert ood_sentence(made(ood=np.zeros(100, np.float32))) == "No tile is unlike the training data."
    growing = np.full(100, np.nan, np.float32)
    growing[:4] = 99.5, 0, 0, 0
    assert ood_sentence(made(ood=growing)).startswith("25 % of the tiles")
    assert percent(0.001) == "less than 1 %"
    assert percent(0.999) == "99 %"
    assert percent(1.0) == "100 %"


def test_a_gene_in_words():
    head = made().head
    assert trust_text(0.53) == "held-out PCC 0.53 (good)"
    assert gene_trust(head, "GOOD") == "held-out PCC 0.53 (0.41 to 0.63), good; at best 0.80"
    assert gene_trust(head, "LOST") == f"held-out PCC 0.12 (0.02 to 0.21), {NOT_SHOWN}"
    assert why_not_shown(head, "GOOD") == ""
    assert "at best" not in why_not_shown(dataclasses.replace(head, attainable_pcc=None), "LOST")
    unmeasured = dataclasses.replace(head, pcc=floats(0.5, 0.2, np.nan))
    assert why_not_shown(unmeasured, "LOST") == "it could not be measured on data that were left out of training"
    assert gene_trust(dataclasses.replace(head, pcc=None), "LOST") == "held-out PCC not measured"
    assert set_trust_text(made(), ["GOOD", "LOST"]).endswith("1 of them not shown to be predicted")


def test_the_width_is_that_of_the_interval():
    told = made(spread=np.linspace(1, 2, 100, dtype=np.float32))
    lower, upper = told.interval("WEAK")
    np.testing.assert_allclose(interval_width(told, "WEAK"), upper - lower, rtol=1e-5)
    np.testing.assert_allclose(interval_width(told, "WEAK", told.values("WEAK")), upper - lower, rtol=1e-5)
    assert interval_width(made(intervals=None), "WEAK") is None


class TestOpacity:
    def test_by_likeness(self):
        shown = opacity(floats(0, 95, 97, OUTSIDE, 100, np.nan), None, 1.0)
        np.testing.assert_allclose(shown, [1, 1, (1 + FAINT) / 2, FAINT, FAINT, 1], rtol=1e-6)

    def test_by_the_interval(self):
        shown = opacity(None, floats(0.5, 1, 2, 3, 9), 1.0)
        np.testing.assert_allclose(shown, [1, 1, (1 + FAINT) / 2, FAINT, FAINT], rtol=1e-6)

    def test_the_lesser_counts(self):
        np.testing.assert_allclose(opacity(floats(99, 0), floats(1, 3), 1.0), [FAINT, FAINT])

    def test_nothing_known_is_none(self):
        assert opacity(None, None, 1.0) is None
        assert opacity(None, floats(1), 0.0) is None

    @settings(deadline=None, max_examples=50)
    @given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 9), st.floats(0, 9))
    def test_more_doubt_is_never_seen_better(self, ood, more_ood, width, more_width):
        (less, more) = (opacity(floats(o), floats(w), 1.0)[0] for o, w in (
            (min(ood, more_ood), min(width, more_width)), (max(ood, more_ood), max(width, more_width))
        ))  # fmt: skip
        assert FAINT - 1e-6 <= more <= less <= 1

    def test_of_a_map(self):
        told = made()
        values = told.values("LOST")
        shown = tile_opacity(told, "LOST", values, float(np.ptp(values)))
        np.testing.assert_allclose(shown[-3:], FAINT)
        alone = tile_opacity(told, None, values, 1e-3)  # no gene: its intervals do not count
        np.testing.assert_allclose(alone[:97], 1)
        assert tile_opacity(made(ood=None, intervals=None), "LOST", values, 1.0) is None


@pytest.mark.parametrize("gene", GENES)
def test_figures_say_how_far_to_believe_a_gene(gene):
    from napari_peka.io.figure import gene_shown

    told = made()
    assert gene_shown(told, gene).trust == gene_trust(told.head, gene)
