"""Several sections under one numbering, and training targets with less noise."""

from __future__ import annotations

import numpy as np
import pytest

from napari_peka.core.errors import SectionError
from napari_peka.core.geometry import TileSpec
from napari_peka.io.sample import sample_sections
from napari_peka.io.section import read_sections
from napari_peka.training.denoise import denoised, depth_weights
from napari_peka.training.paired import gather

SPEC = TileSpec(32, 1.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return sample_sections(tmp_path_factory.mktemp("paired"), patients=2, sections=1, mpp=1.0, spots=(8, 8))


@pytest.fixture
def sections(manifest):
    opened = read_sections(manifest)
    yield opened
    for s in opened:
        s.close()


def test_every_row_is_one_spot_of_one_section(sections):
    paired = gather(sections, SPEC)
    assert len(paired) == sum(len(s.adata) for s in sections) == len(paired.bank)
    for i in (0, len(paired) - 1):
        s = sections[0 if i == 0 else 1]
        row = s.adata[paired.spot_ids[i]]
        assert paired.section[i] == s.section_id
        assert paired.patient[i] == s.patient_id
        np.testing.assert_array_equal(paired.counts[i].toarray()[0], row[:, list(paired.genes)].X.toarray()[0])
        assert paired.totals[i] == row.X.sum()
        np.testing.assert_allclose(paired.centre_um[i], s.centre_um[paired.rows[i]])


def test_neighbours_stay_within_a_section(sections):
    paired = gather(sections, SPEC)
    in_first = (paired.section == "P1S1").astype(np.float64)
    np.testing.assert_array_equal(paired.neighbours(1e5).mean(in_first), in_first)


def test_genes_in_common_keep_their_counts_and_totals(sections):
    lacking = sections[1].adata[:, sections[1].adata.var_names[::-1][:60]].copy()
    sections[1].adata = lacking
    sections[1].__dict__.pop("genes", None)
    paired = gather(sections, SPEC)
    assert set(paired.genes) == set(lacking.var_names)
    i = len(paired) - 1
    np.testing.assert_array_equal(
        paired.counts[i].toarray()[0], lacking[paired.spot_ids[i], list(paired.genes)].X.toarray()[0]
    )
    assert paired.totals[0] == sections[0].adata.X[0].sum()  # all genes of its own section


def test_spots_with_few_counts_are_left_out_and_said(sections):
    least = int(np.median(np.asarray(sections[0].adata.X.sum(1))))
    paired = gather(sections, SPEC, min_counts=least)
    assert paired.totals.min() >= least
    assert "spots have too few counts and are left out" in paired.warnings[0]


def test_what_cannot_be_gathered_is_said(sections):
    with pytest.raises(SectionError, match="no section was given"):
        gather([], SPEC)
    with pytest.raises(SectionError, match="two sections are called 'P1S1'"):
        gather([sections[0], sections[0]], SPEC)
    with pytest.raises(SectionError, match="no spot is left"):
        gather(sections, SPEC, min_counts=10**9)


class TestDenoised:
    @staticmethod
    def _measured():
        rng = np.random.default_rng(0)
        section = np.repeat(["a", "b"], 100)
        signal = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 80))
        offset = np.where(section == "a", 5.0, -5.0)[:, None] * rng.normal(size=80)
        return signal, signal + offset + rng.normal(size=signal.shape), section, np.ones(200)

    def test_common_directions_stay_and_noise_goes(self):
        signal, y, section, w = self._measured()
        clean = denoised(y, section, weights=w, rank=3, variable=np.arange(80))
        within = signal - np.where(section[:, None] == "a", signal[:100].mean(0), signal[100:].mean(0))
        left = clean - clean.mean(0) - (within - within.mean(0))
        assert (left**2).mean() < 0.1 < (y - signal).var()

    def test_sections_no_longer_differ_as_a_whole_but_the_mean_stays(self):
        _, y, section, w = self._measured()
        clean = denoised(y, section, weights=w, rank=None, variable=np.arange(80))
        np.testing.assert_allclose(clean[section == "a"].mean(0), clean[section == "b"].mean(0), atol=1e-4)
        np.testing.assert_allclose(clean.mean(0), y.mean(0), atol=1e-4)

    def test_all_directions_of_one_section_change_nothing(self):
        _, y, _, w = self._measured()
        same = denoised(y, np.zeros(200, int), weights=w, rank=None, variable=np.arange(80))
        np.testing.assert_allclose(same, y, atol=1e-4)

    def test_heavy_spots_decide_more(self):
        _, y, section, _ = self._measured()
        w = np.where(np.arange(200) % 2, 1.99, 0.01)
        clean = denoised(y, section, weights=w, rank=None, variable=np.arange(80))
        heavy = np.average(y, axis=0, weights=w)
        np.testing.assert_allclose(np.average(clean, axis=0, weights=w), heavy, atol=1e-4)

    def test_weights_follow_the_power_and_have_mean_one(self):
        w = depth_weights(np.array([100.0, 400.0]), 0.5)
        assert w.mean() == pytest.approx(1)
        assert w[1] / w[0] == pytest.approx(2)
        np.testing.assert_array_equal(depth_weights(np.array([1.0, 9.0]), 0), [1, 1])
