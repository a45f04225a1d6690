"""A map against measured spots: interpolation, scores, clustered errors, what was seen in training."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import napari_peka as peka
from napari_peka.core.errors import SectionError, UnknownName
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.hotspots import hotspots, moran
from napari_peka.core.interpolation import interpolate
from napari_peka.core.neighbours import neighbour_mean
from napari_peka.workflows import check as room
from napari_peka.workflows.check_places import HIGH, LOW

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")

#: tiles of 20 px, stride as wide; level 0 at the tiles' own mpp
SPEC = TileSpec(20, 0.5)


def grid(rows: int = 4, cols: int = 5, spec: TileSpec = SPEC) -> TileTable:
    return TileTable.grid((rows * 20, cols * 20), (0.5, 0.5), spec)


def at(tiles: TileTable, places, values, known=None) -> np.ndarray:
    known = np.ones(len(tiles), bool) if known is None else known
    weights = interpolate(tiles, np.array(places, float), known)
    out = weights @ np.where(known, values, 0.0)
    return np.where(np.diff(weights.indptr) > 0, out, np.nan)


def named(tiles: TileTable) -> dict[tuple[int, int], int]:
    return {tuple(g): i for i, g in enumerate(tiles.grid_yx.tolist())}


class TestInterpolation:
    def test_by_hand(self):
        """Between tiles centred at 10 and 30 px: at 15 three parts of the first and one of the second."""
        tiles = grid()
        who = named(tiles)
        values = np.zeros(len(tiles))
        values[[who[0, 0], who[0, 1], who[1, 0], who[1, 1]]] = (0.0, 4.0, 8.0, 16.0)
        assert at(tiles, [(10, 10)], values)[0] == 0
        assert at(tiles, [(10, 15)], values)[0] == 1
        assert at(tiles, [(15, 10)], values)[0] == 2
        assert at(tiles, [(20, 20)], values)[0] == 7
        # 0.75 · (0.75 · 0 + 0.25 · 4) + 0.25 · (0.75 · 8 + 0.25 · 16)
        assert at(tiles, [(15, 15)], values)[0] == pytest.approx(0.75 * 1 + 0.25 * 10)

    def test_the_nearest_where_a_corner_is_missing(self):
        tiles = grid()
        who = named(tiles)
        values = np.arange(len(tiles), dtype=float)
        known = np.ones(len(tiles), bool)
        known[who[1, 1]] = False
        assert at(tiles, [(14, 12)], values, known)[0] == values[who[0, 0]]
        assert at(tiles, [(12, 22)], values, known)[0] == values[who[0, 1]]
        assert np.isnan(at(tiles, [(30, 31)], values, known)[0])  # in the missing tile's own cell
        assert at(tiles, [(10, 30)], values, known)[0] == values[who[0, 1]]  # a tile's centre needs no neighbour

    def test_beyond_the_map(self):
        tiles = grid()
        values = np.ones(len(tiles))
        places = [(-1, 10), (81, 10), (10, 101), (1, 1), (79, 99)]
        np.testing.assert_array_equal(at(tiles, places, values), [np.nan, np.nan, np.nan, 1, 1])
        assert np.isnan(at(tiles, [(10, 10)], values, np.zeros(len(tiles), bool))[0])

    def test_tiles_that_overlap(self):
        """With a stride of half a tile the places between are half as far apart."""
        spec = TileSpec(20, 0.5, stride_px=10)
        tiles = TileTable.grid((80, 100), (0.5, 0.5), spec)
        np.testing.assert_allclose(at(tiles, [(33, 47)], tiles.centre_yx[:, 0]), 33)

    @given(
        st.lists(st.tuples(st.floats(10, 70), st.floats(10, 90)), min_size=1, max_size=20),
        st.tuples(*[st.floats(-5, 5)] * 3),
    )
    def test_a_plane_is_a_plane(self, places, plane):
        tiles = grid()
        a, b, c = plane
        values = a + b * tiles.centre_yx[:, 0] + c * tiles.centre_yx[:, 1]
        expected = [a + b * y + c * x for y, x in places]
        np.testing.assert_allclose(at(tiles, places, values), expected, atol=1e-6)

    @given(
        st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=1, max_size=20),
        st.integers(0, 2**20 - 1),
    )
    def test_never_beyond_the_tiles_values(self, places, mask):
        """Whatever is missing, a value lies between those of known tiles, or there is none."""
        tiles = grid()
        known = np.array([mask >> i & 1 for i in range(len(tiles))], bool)
        values = np.random.default_rng(0).normal(size=len(tiles))
        got = at(tiles, places, values, known)
        some = np.isfinite(got)
        if known.any():
            assert (got[some] >= values[known].min() - 1e-9).all()
            assert (got[some] <= values[known].max() + 1e-9).all()
        else:
            assert not some.any()
        # there is a value just where the tile of the place's own cell is known
        cell = np.floor(np.array(places) / 20).astype(int)
        away = (np.abs(np.array(places) / 20 - np.round(np.array(places) / 20)) > 1e-6).all(1)
        who = named(tiles)
        own = np.array([tuple(c) in who and known[who[tuple(c)]] for c in cell.tolist()])
        np.testing.assert_array_equal(some[away], own[away])

    def test_measured_spots_have_no_grid(self):
        table, _ = TileTable.spots(np.array([[10.0, 10.0]]), (0.5, 0.5), SPEC)
        with pytest.raises(ValueError, match="regular grid"):
            interpolate(table, np.zeros((1, 2)), np.ones(1, bool))


def lattice(side: int = 20) -> np.ndarray:
    return np.argwhere(np.ones((side, side))) * 100.0


class TestHotspots:
    def test_planted_ones_are_found_where_they_are(self):
        rng, centre = np.random.default_rng(1), lattice()
        values = rng.normal(size=len(centre))
        high = np.hypot(*(centre - (500, 500)).T) < 250
        low = np.hypot(*(centre - (1400, 1300)).T) < 250
        values[high] += 2
        values[low] -= 2
        found = hotspots(values, neighbour_mean(centre, 150))
        assert (found.sign[high] == 1).mean() > 0.8
        assert (found.sign[low] == -1).mean() > 0.8
        far = (np.hypot(*(centre - (500, 500)).T) > 450) & (np.hypot(*(centre - (1400, 1300)).T) > 450)
        assert (found.sign[far] != 0).mean() < 0.02
        assert (found.q[found.sign != 0] <= 0.05).all()

    def test_random_errors_rarely_are(self):
        """Under chance alone anything is found in at most about 5 % of maps."""
        near = neighbour_mean(lattice(), 150)
        found = [(hotspots(np.random.default_rng(s).normal(size=400), near, seed=s).sign != 0).any() for s in range(60)]
        assert sum(found) <= 7  # P(more | 5 %) is under 2 %

    def test_one_wild_spot_is_no_cluster(self):
        values = np.random.default_rng(0).normal(size=400)
        values[210] = 60
        assert not (hotspots(values, neighbour_mean(lattice(), 150)).sign != 0).any()

    def test_an_error_that_is_everywhere_is_not_found(self):
        rng = np.random.default_rng(3)
        near = neighbour_mean(lattice(), 150)
        x = rng.normal(size=400)
        np.testing.assert_array_equal(hotspots(x, near).q, hotspots(x + 50, near).q)

    def test_too_few_or_constant(self):
        near = neighbour_mean(lattice(4), 150)
        assert np.isnan(hotspots(np.arange(16.0), near).q).all()
        assert not hotspots(np.ones(400), neighbour_mean(lattice(), 150)).sign.any()

    def test_moran_as_by_its_formula(self):
        rng, centre = np.random.default_rng(0), lattice(8)
        x = rng.normal(size=(64, 3))
        x[:, 2] = 1
        weights = (np.abs(centre[:, None] - centre[None]).max(2) < 150).astype(float) - np.eye(64)
        weights /= weights.sum(1, keepdims=True)
        z = x - x.mean(0)
        expected = [(z[:, i] @ weights @ z[:, i]) / (z[:, i] @ z[:, i]) for i in range(2)]
        got = moran(x, neighbour_mean(centre, 150))
        np.testing.assert_allclose(got[:2], expected, rtol=1e-5)
        assert np.isnan(got[2])


@pytest.fixture(scope="module")
def section(shared_data):
    with peka.read_section(shared_data / "st" / "C5.tsv.gz", patient="C") as section:
        yield section


@pytest.fixture(scope="module")
def tiny_check(section, tiny_model):
    """C5 by the tiny model."""
    prediction = peka.predict(section.slide, tiny_model, config=peka.PredictConfig(device="cpu"))
    return peka.check(prediction, section)


@pytest.fixture(scope="module")
def demo_part(section, tmp_path_factory):
    """A corner of C5 by the demo model, stored and read again."""
    path = tmp_path_factory.mktemp("maps") / "C5.peka.zarr"
    model = peka.load_model("demo")
    centre = np.median(section.centre_yx, 0)
    region = shapely.box(*(centre[::-1] - 900), *(centre[::-1] + 900))
    peka.predict(section.slide, model, region=region, output=path, config=peka.PredictConfig(device="cpu"))
    return peka.read_prediction(path)


def test_values_at_spots_are_those_of_the_map(tiny_check):
    """The features are interpolated; as the head is linear that is to interpolate the gene's own values."""
    c, gene = tiny_check, "ERBB2"
    tiles = c.prediction.tiles
    values = c.prediction.values(gene)
    weights = interpolate(tiles, c.centre_yx, np.isfinite(values))
    expected = weights @ np.nan_to_num(values)
    np.testing.assert_allclose(c.predicted(gene)[c.inside], expected[c.inside], rtol=1e-4, atol=1e-4)
    assert c.inside.mean() > 0.95
    assert np.isnan(c.predicted(gene)[~c.inside]).all()


def test_measured_values_are_the_counts_in_the_maps_unit(tiny_check, section):
    c = tiny_check
    j = section.genes.index("ERBB2")
    counts = section.counts.toarray()
    expected = np.log1p(counts[:, j] / counts.sum(1) * 1e4)
    np.testing.assert_allclose(c.measured("erbb2"), expected, rtol=1e-5)
    assert c.unit == "log1p CP10K"
    np.testing.assert_allclose(c.residual("ERBB2"), expected - c.predicted("ERBB2"), rtol=1e-4, atol=1e-5)


def test_scores_equal_scipys(tiny_check):
    c = tiny_check
    half = c.centre_yx[:, 1] < np.median(c.centre_yx[:, 1])
    table = c.scores(half)
    assert list(table.index) == list(c.genes)
    for gene in c.genes:
        rows = half & c.inside
        t, p = c.measured(gene)[rows].astype(float), c.predicted(gene)[rows].astype(float)
        one = c.score(gene, half)
        assert one["spots"] == rows.sum()
        assert one["pcc"] == pytest.approx(stats.pearsonr(t, p)[0], abs=1e-6)
        assert one["spearman"] == pytest.approx(stats.spearmanr(t, p)[0], abs=1e-6)
        assert one["rmse"] == pytest.approx(np.sqrt(np.mean((t - p) ** 2)), rel=1e-5)
        assert table.loc[gene, "pcc"] == pytest.approx(one["pcc"], abs=1e-5)
        assert table.loc[gene, "residual"] == pytest.approx(np.mean(t - p), rel=1e-4)


def test_a_region_and_its_ceiling(tiny_check):
    c = tiny_check
    y, x = np.median(c.centre_yx, 0)
    region = shapely.box(0, 0, x, y)
    rows = c.rows_in(region)
    np.testing.assert_array_equal(rows, (c.centre_yx < (y, x)).all(1))
    first = c.attainable(rows, ["ERBB2"])
    assert 0 < first[0] <= 1
    assert c.attainable(rows, ["ERBB2"]) is first  # kept
    assert c.attainable(genes=["ERBB2"])[0] != first[0]
    assert np.isnan(c.attainable(np.zeros(len(c), bool), ["ERBB2"])).all()


def test_planted_errors_are_outlined(tiny_check, monkeypatch):
    c = tiny_check
    rng = np.random.default_rng(0)
    planted = rng.normal(size=len(c))
    um = c.centre_um
    near = np.hypot(*(um - um[len(c) // 2]).T) < 500
    far = np.hypot(*(um - um[-5]).T) < 500
    planted[near] += 2.5
    planted[far] -= 2.5
    monkeypatch.setattr(c, "_places", {})
    monkeypatch.setattr(type(c), "residual", lambda self, gene: planted)
    places = c.places("ERBB2")
    assert {p.kind for p in places} == {HIGH, LOW}
    high = next(p for p in places if p.sign > 0)
    assert np.isin(high.rows, np.flatnonzero(near)).mean() > 0.7
    assert high.residual > 1
    assert high.q <= 0.05
    inside = shapely.contains_xy(high.polygon, *c.centre_yx[high.rows][:, ::-1].T)
    assert inside.all()
    rng.shuffle(planted)
    c._places.clear()
    assert len(c.places("ERBB2")) <= 1


def test_a_section_of_another_slide_is_one_sentence(tiny_check, shared_data):
    with (
        peka.read_section(shared_data / "st" / "C4.tsv.gz") as other,
        pytest.raises(SectionError, match=r"C4 was measured on C4\.jpg, and the map was predicted on C5\.jpg"),
    ):
        peka.check(tiny_check.prediction, other)


def test_an_unknown_gene(tiny_check):
    with pytest.raises(UnknownName, match="does not know the gene 'NOPE'"):
        tiny_check.measured("NOPE")


def test_a_model_says_what_it_was_trained_on(demo_part, section):
    c = peka.check(demo_part, section)
    assert c.seen
    assert c.split.startswith("TRAINED ON")
    assert c.warnings[0] == "the model was trained on C5: its scores there are worth nothing, leave them out"
    assert any("where the map has no value" in w for w in c.warnings)
    assert {t["name"] for t in demo_part.record["model"]["trained_on"]} == {"C2", "C3", "C4", "C5"}
    # maps of before did not: a model that is on this machine is asked
    old = peka.Prediction(demo_part.tiles, demo_part.embeddings, demo_part.head, demo_part.read_ok, json.loads(
        json.dumps(demo_part.record)))  # fmt: skip
    del old.record["model"]["trained_on"]
    assert peka.check(old, section).seen
    old.record["model"]["digest"] = "another"
    unknown = peka.check(old, section)
    assert not unknown.seen
    assert unknown.warnings[0] == "the model does not say what it was trained on"


def test_the_demo_model_equals_scipy(demo_part, section):
    c = peka.check(demo_part, section)
    table = c.scores()
    assert len(table) == 7959
    rows = c.inside
    for gene in ("ERBB2", "IGKC", "CD74"):
        t, p = c.measured(gene)[rows].astype(float), c.predicted(gene)[rows].astype(float)
        assert table.loc[gene, "pcc"] == pytest.approx(stats.pearsonr(t, p)[0], abs=1e-6)


def test_a_head_that_reads_neighbours(demo_part, section):
    """The demo model's does; its context is interpolated as well."""
    assert demo_part.head.context_um
    c = peka.check(demo_part, section)
    weights = interpolate(demo_part.tiles, c.centre_yx, np.ones(len(demo_part.tiles), bool))
    expected = (weights @ demo_part.values("IGKC"))[c.inside]
    np.testing.assert_allclose(c.predicted("IGKC")[c.inside], expected, rtol=1e-4, atol=1e-4)


def test_the_report(demo_part, section, tmp_path):
    c = peka.check(demo_part, section)
    x = float(np.median(c.centre_yx[c.inside][:, 1]))
    path = c.write(tmp_path / "check", gene="IGKC", regions={"left <part>": shapely.box(0, 0, x, 1e5)})
    text = path.read_text("utf-8")
    assert path.name == "report.html"
    assert "left &lt;part&gt;" in text
    assert "worth nothing" in text
    assert "These scores are flattered" in text
    assert "Getis–Ord" in text
    assert "http" not in text.replace("http-equiv", "").split("<footer")[0].split("How these numbers")[0]
    document = json.loads((tmp_path / "check" / "report.json").read_text())
    assert document["n_spots"] == int(c.inside.sum())
    assert document["split"].startswith("TRAINED ON")
    assert document["n_genes"] == 7959
    assert len(document["hvg50"]) == 50


def test_spots_off_the_map(demo_part, section):
    tiles = demo_part.tiles
    embeddings = np.full_like(demo_part.embeddings, np.nan)
    empty = peka.Prediction(tiles, embeddings, demo_part.head, demo_part.read_ok, demo_part.record)
    with pytest.raises(SectionError, match="none of the 181 spots of C5 lies where this map has values"):
        peka.check(empty, section)


def test_it_needs_no_torch():
    import subprocess

    code = "import sys, napari_peka; napari_peka.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert room.check is peka.check
