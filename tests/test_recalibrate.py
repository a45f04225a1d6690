"""Measured spots beside intervals: whether these hold what they promise, and intervals that are fitted to the spots."""

from __future__ import annotations

import dataclasses
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import napari_peka as peka
from napari_peka import cli
from napari_peka.core import files
from napari_peka.core.doubt import PROBABILITIES, Intervals
from napari_peka.core.errors import OutputMismatch, SectionError, SettingError, StoreError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io.prediction import doubt_record, read_prediction
from napari_peka.io.store import save_result
from napari_peka.workflows.calibration import LEVELS, calibrations, moran_words, verdict, within

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


def normal_intervals(genes: int, sd: float, floor: float | None = None) -> Intervals:
    """Intervals of residuals that are normal with this standard deviation."""
    p = np.array(PROBABILITIES)
    return Intervals(p, np.repeat(stats.norm.ppf(p)[:, None] * sd, genes, 1).astype(np.float32), floor)


def with_intervals(prediction, made: Intervals | None):
    return dataclasses.replace(prediction, intervals=made, record=prediction.record | doubt_record(made))


@pytest.fixture(scope="module")
def section(shared_data):
    with peka.read_section(shared_data / "st" / "C5.tsv.gz", patient="C") as section:
        yield section


@pytest.fixture(scope="module")
def plain(section, tiny_model):
    """C5 by the tiny model, which has no intervals."""
    return peka.predict(section.slide, tiny_model, config=peka.PredictConfig(device="cpu"))


@pytest.fixture(scope="module")
def narrow(plain):
    """The same with intervals that are a tenth of what they should be, and a spread that grows to the right."""
    x = plain.tiles.centre_yx[:, 1]
    spread = (1 + (x - x.min()) / np.ptp(x)).astype(np.float32)
    return dataclasses.replace(with_intervals(plain, normal_intervals(len(plain.genes), 0.1)), spread=spread)


@pytest.fixture
def stored(narrow, tmp_path):
    return save_result(narrow, tmp_path / "C5.peka.zarr")


def stand_in(truth, predicted, spread, intervals):
    """What a calibration asks of a check."""
    genes = tuple(f"G{i}" for i in range(truth.shape[1]))
    return SimpleNamespace(
        genes=genes, index=genes.index, intervals=intervals, inside=np.isfinite(predicted[:, 0]), spread=spread,
        values_of=lambda columns: (truth[:, columns], predicted[:, columns]),
        prediction=SimpleNamespace(fitted={}), section=SimpleNamespace(fingerprint="f"), seen=False,
    )  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3), st.integers(200, 2000))
def test_residuals_as_they_were_promised_are_held_as_promised(seed, sd, n):
    rng = np.random.default_rng(seed)
    predicted, spread = rng.normal(size=(n, 3)).astype(np.float32), 1 + rng.random(n).astype(np.float32)
    truth = (predicted + rng.normal(0, sd, (n, 3)) * spread[:, None]).astype(np.float32)
    left = np.arange(n) < n // 2
    found = calibrations(stand_in(truth, predicted, spread, normal_intervals(3, sd)), {"all": None, "left": left})
    for name, spots in (("all", n), ("left", n // 2)):
        made = found[name]
        assert made.levels == LEVELS
        assert made.spots == spots
        for level, held in zip(LEVELS, made.held):
            assert (np.abs(held - level) < 5 * np.sqrt(level * (1 - level) / spots)).all()
    # by hand
    low, high = normal_intervals(3, sd).around(predicted, spread, 0.8)
    inside = (truth >= low) & (truth <= high)
    np.testing.assert_allclose(found["left"].held[1], inside[left].mean(0))
    np.testing.assert_allclose(found["all"].mean[1], inside.mean(0).mean())


def test_genes_that_do_not_vary_and_spots_off_the_map_do_not_count():
    rng = np.random.default_rng(0)
    truth = np.zeros((100, 3), np.float32)
    truth[:, 1] = rng.normal(size=100)
    truth[:, 2] = rng.normal(size=100)
    predicted = np.zeros((100, 3), np.float32)
    predicted[:10] = np.nan
    intervals = normal_intervals(3, 1.0)
    intervals.quantiles[:, 2] = np.nan
    made = calibrations(stand_in(truth, predicted, np.ones(100, np.float32), intervals), {"": None})[""]
    assert made.spots == 90
    assert made.genes == 1
    np.testing.assert_array_equal(made.held[:, 0], 1)
    np.testing.assert_allclose(made.mean, made.held[:, 1])
    assert np.isnan(made.held[:, 2]).all()
    none = calibrations(stand_in(truth, predicted, np.ones(100, np.float32), None), {"": None})[""]
    assert none.levels == ()
    assert none.in_words(1).startswith("not known")


@pytest.mark.parametrize(
    ("share", "spots", "said"),
    [
        (0.84, 2000, "this slide is less certain than the model thinks"),
        (0.84, 60, "the model knows how wrong it is here"),  # so few spots scatter as much
        (0.89, 2000, "the model knows how wrong it is here"),
        (0.97, 2000, "this slide is more certain than the model thinks"),
    ],
)
def test_what_a_share_means_is_said(share, spots, said):
    assert verdict(share, 0.9, spots) == said
    assert within(0.84, 0.9) == "of 100 measured spots 84 lie within the interval that should hold 90"


def test_moran_in_words():
    said = [moran_words(v) for v in (np.nan, -0.2, 0.05, 0.2, 0.6)]
    assert said[0] == ""
    assert said[1] == said[2] == "errors are scattered at random"
    assert "somewhat" in said[3]
    assert "strongly" in said[4]


def test_a_check_compares_with_intervals(narrow, section):
    made = peka.check(narrow, section)
    gene = "KRT8"
    low, high = made.interval(gene)
    rows = made.inside & (made.centre_yx[:, 1] > np.median(made.centre_yx[:, 1]))
    truth = made.measured(gene)
    held = ((truth >= low) & (truth <= high))[rows].mean()
    assert made.score(gene, rows)["coverage_90"] == pytest.approx(held)
    assert made.scores(rows).loc[gene, "coverage_90"] == pytest.approx(held)
    found = made.calibration(rows)
    assert found.held[LEVELS.index(0.9), made.index(gene)] == pytest.approx(held)
    assert (np.diff(found.held, axis=0) >= 0).all()
    assert "this slide is less certain than the model thinks" in found.in_words()
    # the spread is interpolated as the values are
    x = made.centre_yx[:, 1]
    assert np.corrcoef(made.spread[made.inside], x[made.inside])[0, 1] > 0.99
    assert np.isnan(made.spread[~made.inside]).all()
    np.testing.assert_allclose((high - low)[made.inside], made.spread[made.inside] * 0.2 * stats.norm.ppf(0.95),
                               rtol=1e-4)  # fmt: skip
    assert made.report().summary["coverage_90"] == pytest.approx(made.scores()["coverage_90"].mean())


def test_a_check_without_intervals_says_nothing_of_them(plain, section, tmp_path):
    made = peka.check(plain, section)
    assert np.isnan(made.score("KRT8")["coverage_90"])
    assert np.isfinite(made.score("KRT8")["moran"])
    assert "How far the intervals hold" not in made.write(tmp_path / "a", gene="KRT8").read_text("utf-8")
    with pytest.raises(SettingError, match="says nothing of its errors"):
        made.interval("KRT8")


def test_the_report_shows_the_calibration_by_region(narrow, section, tmp_path):
    import shapely

    made = peka.check(narrow, section)
    x = float(np.median(made.centre_yx[:, 1]))
    text = made.write(tmp_path / "a", gene="KRT8", regions={"left": shapely.box(0, 0, x, 1e5)}).read_text("utf-8")
    assert "How far the intervals hold" in text
    assert "this slide is less certain than the model thinks" in text
    assert text.count("<td>left</td>") == 1 + len(LEVELS)
    assert "Moran&#x27;s I of measured − predicted" in text
    assert "that they hold here is no evidence" not in text


def test_fitted_intervals_hold_more_and_only_they_change(stored, section):
    path = stored.path
    before = {p.relative_to(path): p.read_bytes() for p in (path / "obsm").rglob("*") if p.is_file()}
    own = peka.check(stored, section).calibration()
    made = peka.recalibrate(stored, section)
    assert made.path == path
    again = read_prediction(path)
    assert {p.relative_to(path): p.read_bytes() for p in (path / "obsm").rglob("*") if p.is_file()} == before
    np.testing.assert_array_equal(again.values("KRT8"), stored.values("KRT8"))
    np.testing.assert_array_equal(again.spread, stored.spread)
    np.testing.assert_array_equal(again.intervals.quantiles, made.intervals.quantiles)
    np.testing.assert_array_equal(again.model_intervals.quantiles, stored.intervals.quantiles)
    told = again.record["intervals"]["fitted"]
    check = peka.check(again, section)
    assert (told["section"], told["spots"], told["genes"]) == ("C5", int(check.inside.sum()), len(check.genes))
    assert told["coverage_90"]["before"] == pytest.approx(own.mean[LEVELS.index(0.9)], abs=1e-4)
    assert told["coverage_90"]["left_out"] > told["coverage_90"]["before"] + 0.2
    assert again.record["identity"] == stored.record["identity"], "it is still the result of its run"
    # they are no evidence of themselves
    found = check.calibration()
    assert found.mean[LEVELS.index(0.9)] > 0.8
    assert "no evidence" in found.in_words()
    assert "certain" not in found.in_words()
    assert any("fitted to these very spots" in w for w in check.warnings)


def test_to_fit_twice_changes_nothing(narrow, section):
    once = peka.recalibrate(narrow, section)
    assert once.path is None, "a map in memory stays there"
    twice = peka.recalibrate(once, section)
    np.testing.assert_array_equal(twice.intervals.quantiles, once.intervals.quantiles)
    np.testing.assert_array_equal(twice.model_intervals.quantiles, narrow.intervals.quantiles)
    assert twice.only(["KRT8"]).model_intervals.quantiles.shape[1] == 1


def test_a_map_that_is_read_by_another_head_has_that_heads_intervals(narrow, section, tiny_model):
    fitted = peka.recalibrate(narrow, section)
    shown = peka.with_model(fitted, tiny_model)
    assert shown.intervals is None
    assert shown.model_intervals is None
    assert not shown.record["intervals"]


def test_genes_that_were_not_measured_keep_the_models_intervals(narrow, section):
    head = dataclasses.replace(narrow.head, genes=("NOT_MEASURED", *narrow.genes[1:]), gene_ids=())
    fitted = peka.recalibrate(dataclasses.replace(narrow, head=head), section)
    np.testing.assert_array_equal(fitted.intervals.quantiles[:, 0], narrow.intervals.quantiles[:, 0])
    assert (fitted.intervals.quantiles[-1, 1:] > narrow.intervals.quantiles[-1, 1:]).all()


def test_another_output_leaves_the_result_alone(stored, section, tmp_path):
    other = tmp_path / "fitted.peka.zarr"
    made = peka.recalibrate(stored, section, output=other)
    assert made.path == other
    assert read_prediction(stored.path).model_intervals is None
    with pytest.raises(OutputMismatch, match="is there already"):
        peka.recalibrate(stored, section, output=other)
    assert peka.recalibrate(stored, section, output=other, overwrite=True).path == other
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(StoreError, match="not a napari-peka result"):
        peka.recalibrate(stored, section, output=tmp_path / "mine.zarr", overwrite=True)


def test_what_stops_it_leaves_the_result_as_it_was(stored, section, monkeypatch):
    before = sorted(p.name for p in stored.path.parent.iterdir())
    progress = JobProgress()
    progress.cancel()
    with pytest.raises(Cancelled):
        peka.recalibrate(stored, section, progress=progress)

    def full(_folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync_tree", full)
    with pytest.raises(StoreError, match="the disk is full"):
        peka.recalibrate(stored, section)
    assert sorted(p.name for p in stored.path.parent.iterdir()) == before
    assert read_prediction(stored.path).model_intervals is None


def test_what_cannot_be_fitted_is_one_sentence(plain, narrow, section, shared_data):
    with pytest.raises(SettingError, match="says nothing of its errors"):
        peka.recalibrate(plain, section)
    with (
        peka.read_section(shared_data / "st" / "C4.tsv.gz") as other,
        pytest.raises(SectionError, match="which is another file"),
    ):
        peka.recalibrate(narrow, other)
    centre = peka.check(narrow, section).centre_yx
    near = np.hypot(*(narrow.tiles.centre_yx - np.median(centre, 0)).T) < 200
    few = np.where(near[:, None], narrow.embeddings, np.nan).astype(np.float16)
    with pytest.raises(SettingError, match=r"spots of C5 lie on the map, and intervals need at least 20"):
        peka.recalibrate(dataclasses.replace(narrow, embeddings=few, read_ok=near), section)
    with pytest.raises(SettingError, match="the map is not finished"):
        peka.recalibrate(dataclasses.replace(narrow, embeddings=few), section)


def run(*args, code=0):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in args])
    assert ended.value.code == code, err.getvalue()
    return out.getvalue(), err.getvalue().splitlines()


def test_spots_of_training_are_refused_under_another_image_too(narrow, section):
    """A section's fingerprint has its image in it; its name has not."""
    trained = {
        "name": section.section_id,
        "patient": "C",
        "fingerprint": "another",
        "slide": "another",
        "part": "train",
    }
    record = narrow.record | {"model": narrow.record["model"] | {"trained_on": [trained]}}
    with pytest.raises(SectionError, match=r"trained on a section called C5.*under their own name"):
        peka.recalibrate(dataclasses.replace(narrow, record=record), section)
    held_out = record | {"model": record["model"] | {"trained_on": [trained | {"part": "held out"}]}}
    peka.recalibrate(dataclasses.replace(narrow, record=held_out), section)


def test_spots_at_another_scale_are_refused(narrow, shared_data):
    with (
        peka.read_section(shared_data / "st" / "C5.tsv.gz", mpp=0.3) as other,
        pytest.raises(SectionError, match=r"C5 has 0\.3 µm per pixel, and the map was predicted at 0\.68"),
    ):
        peka.recalibrate(narrow, other)


def test_an_output_that_cannot_be_is_said_before_anything_is_fitted(narrow, section, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_peka.workflows.recalibrate.check", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(SettingError, match=r"must end in \.zarr"):
        peka.recalibrate(narrow, section, output=tmp_path / "full")
    (tmp_path / "there.peka.zarr").mkdir()
    with pytest.raises(OutputMismatch, match="is there already"):
        peka.recalibrate(narrow, section, output=tmp_path / "there.peka.zarr")


def test_the_command(stored, shared_data, tmp_path):
    spots, other = shared_data / "st" / "C5.tsv.gz", tmp_path / "b.peka.zarr"
    out, _ = run("recalibrate", stored.path, spots, "-o", other, "--json")
    data = json.loads(out)
    assert set(data) == {"result", "section", "spots", "genes", "coverage_90", "warnings"}
    assert (data["result"], data["section"]) == (str(other), "C5")
    assert read_prediction(other).model_intervals is not None
    out, _ = run("recalibrate", stored.path, spots)
    assert f"{data['spots']} spots of C5" in out
    assert "lay within the 90 % interval after a fit to other parts" in out
    assert read_prediction(stored.path).model_intervals is not None
    _, err = run("recalibrate", stored.path, shared_data / "st" / "C4.tsv.gz", code=2)
    assert err[-1].startswith("error: C4 was measured on")
