"""The gene head: names, values, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from napari_peka.core.errors import UnknownName
from napari_peka.core.head import GeneHead

GENES = ("ERBB2", "COL1A1", "C1orf56")
IDS = ("ENSG00000141736", "ENSG00000108821", "")


def head(n_dims: int = 6, **kwargs) -> GeneHead:
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(n_dims, 3)).astype(np.float32)
    return GeneHead(weights, np.array([0.5, -1, 2], np.float32), GENES, "log1p CP10K", **{"gene_ids": IDS, **kwargs})


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 1025, 5000])
def test_values_are_embedding_times_weights_plus_bias(n):
    h = head()
    x = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float16)
    want = x.astype(np.float64) @ h.weights.astype(np.float64) + h.bias
    for i, gene in enumerate(GENES):
        got = h.values(x, gene)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want[:, i], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(h.matrix(x), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(h.matrix(x, ["COL1A1"])[:, 0], want[:, 1], rtol=1e-5, atol=1e-5)


def test_without_context_the_weights_are_as_wide_as_the_embedding():
    assert head().n_dims == head().embedding_dims == 6
    assert head(context_um=50.0).n_dims == 6
    assert head(context_um=50.0).embedding_dims == 3


def test_a_tile_that_was_not_read_has_no_value():
    x = np.ones((3, 6), np.float16)
    x[1] = np.nan
    assert np.isnan(head().values(x, "ERBB2")).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "column"),
    [("ERBB2", 0), ("erbb2", 0), (" Erbb2 ", 0), ("ENSG00000108821", 1), ("C1orf56", 2), ("c1ORF56", 2)],
)
def test_a_gene_is_found_by_symbol_or_ensembl_id_in_any_case(name, column):
    assert head().index(name) == column


@pytest.mark.parametrize("name", ["", "GAPDH", "ENSG0"])
def test_what_is_not_there_is_said(name):
    with pytest.raises(UnknownName, match="does not know the gene") as e:
        head().index(name)
    assert isinstance(e.value, KeyError)
    assert "3 genes" in str(e.value)


def test_a_model_without_ensembl_ids_says_so():
    with pytest.raises(UnknownName, match="has no Ensembl ids"):
        head(gene_ids=()).index("ENSG00000141736")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gene_ids": ("a",)},
        {"pcc": np.zeros(2, np.float32)},
        {"genes": ("A", "A", "B")},
        {"genes": ("A", "B")},
        {"bias": np.zeros(4, np.float32)},
    ],
)
def test_parts_that_do_not_fit_are_refused(kwargs):
    parts = {"weights": np.zeros((6, 3), np.float32), "bias": np.zeros(3, np.float32), "genes": GENES, "unit": "u"}
    with pytest.raises(ValueError, match=r"unique|needs|one entry per gene"):
        GeneHead(**{**parts, **kwargs})
