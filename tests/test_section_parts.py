"""Parts of the section readers: names of genes, the lattice of spots, what counts as counts, the sample itself."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_peka.io.sample import SAMPLE_PROGRAMS, sample_genes, sample_section
from napari_peka.io.section import Section, read_section
from napari_peka.io.sections.genes import is_ensembl, make_unique, name_genes
from napari_peka.io.sections.grid import fit_grid, layout_of, neighbour_grid
from napari_peka.io.sections.scverse import not_counts


def names(*values: str) -> np.ndarray:
    return np.array(values, object)


# -- genes -------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["A", "B", "A-1", "A-2", "B-1", "MT-CO1"]), max_size=12))
def test_names_become_unique_as_in_scverse(given_names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.AnnData(np.zeros((1, len(given_names)), np.float32))
        adata.var_names = given_names
        adata.var_names_make_unique()
    found, changed = make_unique(np.array(given_names, object))
    assert list(found) == list(adata.var_names)
    assert changed == sum(a != b for a, b in zip(found, given_names))


def test_versions_are_dropped_and_ids_told_from_symbols():
    genes = name_genes(names("ENSG00000141736.14", "ENSMUSG00000062312", "ENSG00000182378.15_PAR_Y"))
    assert list(genes.names) == ["ENSG00000141736", "ENSMUSG00000062312", "ENSG00000182378_PAR_Y"]
    assert list(genes.ids) == list(genes.names)
    genes = name_genes(names("ERBB2", "nan", ""), names("ENSG00000141736.14", "ENSG00000000003.1", "X"))
    assert list(genes.names) == ["ERBB2", "ENSG00000000003", "X"]
    assert list(genes.ids) == ["ENSG00000141736", "ENSG00000000003", "X"]
    assert not genes.warnings
    assert name_genes(names("ERBB2")).ids is None
    # clones are named after their accession, with a version: those are symbols
    assert list(name_genes(names("FO538757.1", "AC004556.3")).names) == ["FO538757.1", "AC004556.3"]
    assert not is_ensembl("ENSA")


# -- pitch -------------------------------------------------------------------------------------------------------


@given(st.floats(0.3, 800), st.floats(0, 2 * np.pi), st.booleans(), st.booleans())
def test_the_pitch_of_a_turned_lattice(pitch, angle, mirrored, hexagonal):
    row, col = (a.ravel() for a in np.indices((7, 9)))
    if hexagonal:
        col = 2 * col + row % 2
        xy = np.column_stack([col / 2, row * np.sqrt(3) / 2]) * pitch
    else:
        xy = np.column_stack([col, row]) * pitch
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = (xy * [-1 if mirrored else 1, 1]) @ turn + 1000
    layout = layout_of(row, col)
    assert layout == ("hex" if hexagonal else "square")
    grid = fit_grid(xy, np.column_stack([col, row]).astype(float), layout)
    assert grid.pitch_px == pytest.approx(pitch)
    assert grid.misfit == pytest.approx(0, abs=1e-6)
    assert neighbour_grid(xy).pitch_px == pytest.approx(pitch)


def test_jitter_and_wild_spots_do_not_move_the_pitch():
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.indices((14, 14)))
    xy = np.column_stack([col, row]) * 290.0 + rng.normal(0, 0.05 * 290, (196, 2))
    xy[:4] += 5000
    grid = fit_grid(xy, np.column_stack([col, row]).astype(float), "square")
    assert grid.pitch_px == pytest.approx(290, rel=0.005)
    assert neighbour_grid(xy).pitch_px == pytest.approx(290, rel=0.03)


def test_too_few_spots_or_a_line_have_no_pitch():
    line = np.column_stack([np.arange(5.0), np.zeros(5)])
    assert fit_grid(line * 100, line, "square") is None
    assert fit_grid(line[:2], line[:2], "square") is None
    assert neighbour_grid(line[:2]) is None
    assert neighbour_grid(np.zeros((4, 2))) is None


# -- counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0, 1, 7.0], None),
        ([], None),
        ([0.5, 1], "fractions"),
        ([-1, 2], "negative"),
        ([np.nan, 1], "not finite"),
        ([np.inf], "not finite"),
    ],
)
def test_what_counts_are(values, why):
    found = not_counts(np.array(values, float))
    assert found is None if why is None else why in found


# -- the sample --------------------------------------------------------------------------------------------------


def colours(section: Section) -> np.ndarray:
    """Mean and spread of the colours around each spot."""
    image = section.slide.read_level(0, 0, 0, *section.slide.shape).astype(float)
    out = []
    for y, x in section.centre_yx.astype(int):
        tile = image[max(0, y - 50) : y + 50, max(0, x - 50) : x + 50].reshape(-1, 3)
        out.append(np.concatenate([tile.mean(0), tile.std(0)]))
    return np.array(out)


def log_cp10k(section: Section) -> np.ndarray:
    counts = section.counts.toarray()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def pcc_between(train: Section, test: Section, features=colours) -> pd.Series:
    """Mean PCC for each pattern of a plain least-squares fit on one section, on another one."""
    x, t, y = features(train), features(test), log_cp10k(train)
    one = np.ones((len(x), 1))
    fit = np.linalg.lstsq(np.hstack([x, one]), y, rcond=None)[0]
    got, want = np.hstack([t, np.ones((len(t), 1))]) @ fit, log_cp10k(test)
    a, b = got - got.mean(0), want - want.mean(0)
    pcc = (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return pd.Series(pcc, [g.rstrip("0123456789") for g in sample_genes()]).groupby(level=0).mean()


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    found = [
        read_section(sample_section(folder, name=f"S{i}", mpp=1.0, **options), patient="P")
        for i, options in enumerate(({"seed": 0}, {"seed": 1}, {"seed": 2, "patient": 2}, {"seed": 1, "shuffle": True}))
    ]
    yield found
    for section in found:
        section.close()


def test_expression_follows_what_the_image_shows(sections):
    first, second, patient, shuffled = sections
    for test in (second, patient):
        pcc = pcc_between(first, test)
        assert (pcc[list(SAMPLE_PROGRAMS)] > 0.85).all()
        assert pcc["FLAT"] < 0.4
    assert (pcc_between(first, shuffled).abs() < 0.2).all()
    assert (pcc_between(shuffled, second).abs() < 0.5).all()
    # patterns lie elsewhere in another section: position says nothing
    assert (pcc_between(first, second, lambda s: s.centre_um)[list(SAMPLE_PROGRAMS)].abs() < 0.4).all()


def test_shuffled_pairs_are_the_same_counts_elsewhere(sections):
    _, second, _, shuffled = sections
    assert list(second.adata.obs_names) == list(shuffled.adata.obs_names)
    a, b = second.counts.toarray(), shuffled.counts.toarray()
    assert (a != b).any(1).mean() > 0.9
    assert sorted(map(tuple, a)) == sorted(map(tuple, b))


def test_a_patient_has_a_stain_of_its_own(sections):
    first, second, patient, _ = sections

    def tint(section: Section) -> np.ndarray:
        return colours(section)[:, :3].mean(0)

    assert np.abs(tint(first) - tint(second)).max() < 8
    assert np.abs(tint(first) - tint(patient)).max() > 8


def test_the_sample_is_drawn_from_its_seed(tmp_path):
    made = [sample_section(tmp_path / k, seed=s, spots=(6, 6), mpp=1.0) for k, s in (("a", 4), ("b", 4), ("c", 5))]
    files = [[p.read_bytes() for p in sorted(o.parent.rglob("*.[pct][nsi][gvf]"))] for o in made]
    assert files[0] == files[1]
    assert len(files[0]) == 4  # scan, hires, lowres, positions
    read = [read_section(o) for o in made]
    for section in read:
        section.close()
    assert read[0].fingerprint == read[1].fingerprint != read[2].fingerprint
