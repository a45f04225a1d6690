"""The read-out from embedding to genes, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import UnknownName, near_names

FloatArray = npt.NDArray[np.floating]
#: rows converted to float32 at once: few enough to stay in a core's cache: twice as fast as all at once
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class GeneHead:
    """Linear map from a tile's embedding to the expression of every gene.

    Centring, scaling, PCA and ridge are folded into one matrix, so that ``values = embeddings @ weights + bias``.

    Parameters
    ----------
    weights
        float32, shape ``(n_dims, n_genes)``.
    bias
        float32, shape ``(n_genes,)``.
    genes
        Gene symbols, unique, in the order of the columns of `weights`.
    unit
        Unit of the values in words, such as ``"log1p CP10K"``.
    gene_ids
        Ensembl ids in the same order; an empty string where unknown.
    pcc
        Held-out Pearson correlation of each gene, shape ``(n_genes,)``; NaN where it was not measured.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    genes: tuple[str, ...]
    unit: str
    gene_ids: tuple[str, ...] = ()
    pcc: npt.NDArray[np.float32] | None = None
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        d, g = self.weights.shape
        if self.bias.shape != (g,) or len(self.genes) != g:
            raise ValueError(
                f"a head of {d} x {g} weights needs {g} biases and names, got {self.bias.shape} and {len(self.genes)}"
            )
        for name, values in (("gene_ids", self.gene_ids), ("pcc", self.pcc)):
            if values is not None and len(values) not in ((0, g) if name == "gene_ids" else (g,)):
                raise ValueError(f"{name} must have one entry per gene ({g}), got {len(values)}")
        index = {gene: i for i, gene in enumerate(self.genes)}
        if len(index) != g:
            raise ValueError("gene names of a head must be unique")
        for i, gene_id in enumerate(self.gene_ids):
            index.setdefault(gene_id, i)
        # exact names win: mouse genes may differ from human ones by case alone
        for name, i in list(index.items()):
            index.setdefault(name.casefold(), i)
        index.pop("", None)
        object.__setattr__(self, "_index", index)

    @property
    def n_dims(self) -> int:
        """Width of the embeddings that this head reads."""
        return int(self.weights.shape[0])

    def index(self, gene: str) -> int:
        """Return the column of `gene`, a symbol (any case) or an Ensembl id.

        Raises
        ------
        UnknownName
            If the model does not know the gene; near names are offered.
        """
        name = gene.strip()
        for key in (name, name.casefold()):
            if key in self._index:
                return self._index[key]
        if name.upper().startswith("ENSG") and not any(self.gene_ids):
            raise UnknownName(f"the model has no Ensembl ids, so it does not know {gene!r}; give a gene symbol")
        raise UnknownName(
            f"the model does not know the gene {gene!r} (it predicts {len(self.genes)} genes)"
            + near_names(gene.strip(), self.genes)
        )

    def values(self, embeddings: FloatArray, gene: str) -> npt.NDArray[np.float32]:
        """Return the expression of one gene, shape ``(n,)``, in :attr:`unit`; NaN where the embedding is NaN."""
        i = self.index(gene)
        column = np.ascontiguousarray(self.weights[:, i])
        values = np.full(len(embeddings), self.bias[i], np.float32)
        for at in range(0, len(values), _ROWS):
            rows = slice(at, at + _ROWS)
            values[rows] += np.asarray(embeddings[rows], np.float32) @ column
        return values

    def matrix(self, embeddings: FloatArray, genes: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Return the expression of several genes (all by default), shape ``(n, n_genes)``."""
        x = np.asarray(embeddings, np.float32)
        if genes is None:
            return x @ self.weights + self.bias
        cols = [self.index(g) for g in genes]
        return x @ self.weights[:, cols] + self.bias[cols]
