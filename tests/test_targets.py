"""Genes in common, genes to predict, and their expression in a unit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from napari_peka.core.errors import SectionError, SettingError, UnknownName
from napari_peka.core.neighbours import neighbour_mean
from napari_peka.core.progress import JobProgress
from napari_peka.training import targets
from napari_peka.training.panel import gene_panel
from napari_peka.training.targets import (
    choose_genes,
    expression,
    highly_variable,
    log1p_cp10k,
    most_variable,
    smooth_neighbours,
)

ERBB2, KRT8, CD3E, COL1A1 = "ENSG00000141736", "ENSG00000170421", "ENSG00000198851", "ENSG00000108821"


def section(name: str, genes: list[str], ids: list[str] | None = None) -> SimpleNamespace:
    """What a panel reads of a section."""
    var = pd.DataFrame(index=genes)
    if ids:
        var["gene_ids"] = ids
    return SimpleNamespace(section_id=name, genes=tuple(genes), adata=SimpleNamespace(var=var))


def test_the_panel_is_what_all_sections_have_in_the_order_of_the_first():
    a, b = section("a", ["ERBB2", "KRT8", "CD3E"]), section("b", ["CD3E", "X", "ERBB2"])
    progress = JobProgress()
    panel = gene_panel([a, b], progress=progress)
    assert panel.genes == ("ERBB2", "CD3E")
    np.testing.assert_array_equal(panel.columns, [[0, 2], [2, 0]])
    assert panel.gene_ids == ()
    assert progress.notes == ["2 of 3 genes of a are in all 2 sections"]


def test_symbols_and_ensembl_ids_meet_whatever_their_version():
    a = section("a", ["ERBB2", "KRT8", "CD3E"], [ERBB2, KRT8 + ".12", CD3E])
    b = section("b", [KRT8, CD3E + ".3", COL1A1])
    panel = gene_panel([a, b])
    assert panel.genes == ("KRT8", "CD3E")
    assert panel.gene_ids == (KRT8, CD3E)
    np.testing.assert_array_equal(panel.columns, [[1, 2], [0, 1]])


def test_one_symbol_of_two_genes_is_not_one_gene():
    a, b = section("a", ["TBCE", "KRT8"], [ERBB2, KRT8]), section("b", ["TBCE", "KRT8"], [COL1A1, KRT8])
    assert gene_panel([a, b]).genes == ("KRT8",)


def test_a_list_gives_the_order_and_a_section_with_both_leads_from_symbol_to_id():
    a = section("a", ["ERBB2", "KRT8"], [ERBB2, KRT8])
    b = section("b", [KRT8, ERBB2])
    progress = JobProgress()
    panel = gene_panel([b, a], ["KRT8", ERBB2, "KRT8"], progress=progress)
    np.testing.assert_array_equal(panel.columns, [[0, 1], [1, 0]])
    assert progress.notes == ["1 of the 3 genes asked for are given twice"]


def test_missing_genes_are_named_for_each_section_with_near_names():
    a, b, c = (section(n, g) for n, g in (("a", ["ERBB2", "KRT8"]), ("b", ["ERBB2"]), ("c", ["ERBB2"])))
    with pytest.raises(UnknownName) as e:
        gene_panel([a, b, c], ["ERBB2", "KRT8", "ERBB3", ERBB2])
    text = str(e.value)
    assert "a does not measure 2 of the 4 genes asked for: ERBB3 (did you mean ERBB2?)" in text
    assert "b, c do not measure 3 of the 4 genes asked for: KRT8" in text
    assert f"{ERBB2} (only symbols are known)" in text


def test_sections_without_a_common_gene_are_refused():
    with pytest.raises(SectionError, match="b has 0 of those of a; 'Krt8' and 'ERBB2'"):
        gene_panel([section("a", ["ERBB2"]), section("b", ["Krt8"])])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 20))
def test_expression_is_its_definition_sparse_or_dense(seed, n, g):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2.0, (n, g)).astype(np.float32)
    totals = counts.sum(1) + rng.integers(1, 100, n)  # genes that are not among the columns count too
    natural = np.log(1 + counts / totals[:, None] * 10_000)
    for given_counts in (counts, sparse.csr_matrix(counts)):
        got = expression(given_counts, totals)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, natural, rtol=1e-6, atol=1e-6)
        two = expression(given_counts, totals, "log2(1+CP10K)")
        np.testing.assert_allclose(two, np.log2(1 + counts / totals[:, None] * 10_000), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(log1p_cp10k(sparse.csr_matrix(counts), totals).toarray(), natural, atol=1e-12)


def test_expression_is_the_same_whatever_is_worked_on_at_once(monkeypatch):
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (23, 9)))
    totals = np.asarray(counts.sum(1)).ravel() + 1
    whole = expression(counts, totals)
    order = most_variable(whole, counts)
    monkeypatch.setattr(targets, "_AT_ONCE", 4)
    np.testing.assert_array_equal(expression(counts, totals), whole)
    np.testing.assert_array_equal(most_variable(whole, counts), order)


def test_no_counts_and_no_such_unit_are_refused():
    with pytest.raises(SectionError, match="2 of 3 spots have no counts"):
        expression(np.zeros((3, 2)), np.array([0.0, 4, 0]))
    with pytest.raises(SettingError, match="no unit 'CPM'; it is one of log1p CP10K"):
        expression(np.ones((1, 1)), np.ones(1), "CPM")


def test_the_most_variable_genes_must_be_seen_in_more_than_a_tenth_of_the_spots():
    counts = np.ones((20, 4))
    counts[:, 0] = 0
    counts[:2, 0] = 1  # in exactly a tenth
    counts[:3, 1] = 0
    y = np.zeros((20, 4), np.float32)
    y[::2] = [9, 1, 3, 2]
    np.testing.assert_array_equal(most_variable(y, counts), [2, 3, 1, 0])
    np.testing.assert_array_equal(most_variable(y, sparse.csr_matrix(counts), 2), [2, 3])
    np.testing.assert_array_equal(most_variable(y, counts, 50), [2, 3, 1])


def test_genes_are_chosen_by_how_many_spots_show_them():
    counts = sparse.csr_matrix([[1, 0, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]])
    totals, where = np.full(4, 9.0), np.full(4, "a")
    progress = JobProgress()
    got = choose_genes(counts, ["A", "B", "C"], totals, where, min_detected=0.5, progress=progress)
    np.testing.assert_array_equal(got, [0, 2])
    assert progress.notes == ["1 of 3 genes are seen in fewer than 2 spots, and left out"]
    np.testing.assert_array_equal(choose_genes(counts, ["A", "B", "C"], totals, where, min_spots=3), [0])
    with pytest.raises(SettingError, match=r"no gene is seen in 5 of the 4 spots .* in 4.*; lower"):
        choose_genes(counts, ["A", "B", "C"], totals, where, min_spots=5)


def test_wanted_genes_are_taken_as_they_are():
    counts = sparse.csr_matrix(np.zeros((2, 3)))
    ids = [ERBB2, "", CD3E]
    chosen = choose_genes(
        counts, ["ERBB2", "X", "CD3E"], np.ones(2), np.full(2, "a"), wanted=[CD3E, "ERBB2"], gene_ids=ids
    )
    np.testing.assert_array_equal(chosen, [2, 0])
    with pytest.raises(UnknownName, match=r"do not all measure CD3D \(did you mean CD3E\?\)"):
        choose_genes(counts, ["ERBB2", "X", "CD3E"], np.ones(2), np.full(2, "a"), wanted=["CD3D", "X"])


def batches() -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Two sections of 400 genes: ten vary within both, ten differ between them alone."""
    rng = np.random.default_rng(0)
    rate = np.ones((200, 400)) * rng.uniform(5, 20, 400)
    rate[:, :10] *= rng.choice([0.2, 1.8], (200, 10))
    rate[:100, 10:20] *= 1.7
    rate[100:, 10:20] *= 0.3
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    return counts, np.asarray(counts.sum(1)).ravel(), np.repeat(["a", "b"], 100)


def test_variable_genes_vary_within_sections_not_between_them():
    counts, totals, where = batches()
    within, pooled = (highly_variable(counts, totals, s, 30) for s in (where, np.full(200, "one")))
    assert set(range(10)) <= set(within)
    assert not set(range(10, 20)) & set(within)
    assert len(set(range(10, 20)) & set(pooled)) > 5
    names = [str(i) for i in range(400)]
    np.testing.assert_array_equal(choose_genes(counts, names, totals, where, n_top=30), within)
    np.testing.assert_array_equal(highly_variable(counts, totals, where, 999), np.arange(400))


def test_too_few_spots_to_rank_genes_is_one_sentence():
    counts = sparse.csr_matrix(np.ones((3, 30)))
    with pytest.raises(SettingError, match="3 spots of 30 genes are too few to rank"):
        highly_variable(counts, np.full(3, 30.0), np.array(["a", "a", "b"]), 5)


def test_smoothing_averages_a_spot_with_its_neighbours():
    at = np.array([[0.0, 0], [0, 100], [0, 200], [900, 900]])
    y = np.array([[1.0, 0], [2, 0], [6, 3], [7, 7]], np.float32)
    got = smooth_neighbours(y, neighbour_mean(at, 120))
    np.testing.assert_allclose(got, [[1.5, 0], [3, 1], [4, 1.5], [7, 7]])
