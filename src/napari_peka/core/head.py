"""The read-out from embedding to genes, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from napari_peka.core.aliases import symbol_of
from napari_peka.core.errors import UnknownName, near_names
from napari_peka.core.half import halves_dot
from napari_peka.core.neighbours import Neighbours

FloatArray = npt.NDArray[np.floating]
#: held-out correlation below which a gene counts as not predicted, whatever baselines reach
LEAST_PCC = 0.15
#: what may be known of each gene from spots that were held out of training
MEASURED = ("pcc", "pcc_low", "pcc_high", "attainable_pcc", "baseline_pcc_high")


@dataclass(frozen=True, eq=False)
class GeneHead:
    """Linear map from a tile's embedding to the expression of every gene.

    Centring, scaling, PCA and ridge are folded into one matrix, so that ``values = features @ weights + bias``. The
    features are the tile's embedding; with `context_um`, the mean embedding of its neighbours follows it.

    Parameters
    ----------
    weights
        float32, shape ``(n_dims, n_genes)``; with `context_um` the upper half reads the tile's own embedding, the
        lower half the mean of its neighbours'.
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
    context_um
        Radius in µm of the neighbours whose mean embedding is read as well (see `core.neighbours`); None: no context.
    attainable_pcc
        Noise ceiling of `pcc`: what a perfect prediction would reach, shape ``(n_genes,)``; NaN where unknown.
    pcc_low, pcc_high
        95 % interval of `pcc`, shape ``(n_genes,)``; NaN where unknown.
    baseline_pcc_high
        Upper end of the 95 % interval of the PCC of the best baseline (colour, position, chance), ``(n_genes,)``; NaN
        where unknown.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    genes: tuple[str, ...]
    unit: str
    gene_ids: tuple[str, ...] = ()
    pcc: npt.NDArray[np.float32] | None = None
    context_um: float | None = None
    attainable_pcc: npt.NDArray[np.float32] | None = None
    pcc_low: npt.NDArray[np.float32] | None = None
    pcc_high: npt.NDArray[np.float32] | None = None
    baseline_pcc_high: npt.NDArray[np.float32] | None = None
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        d, g = self.weights.shape
        if self.bias.shape != (g,) or len(self.genes) != g:
            raise ValueError(
                f"a head of {d} x {g} weights needs {g} biases and names, got {self.bias.shape} and {len(self.genes)}"
            )
        told: dict[str, Sequence[str] | FloatArray] = {"gene_ids": self.gene_ids, **self.measured}
        for name, values in told.items():
            if len(values) not in ((0, g) if name == "gene_ids" else (g,)):
                raise ValueError(f"{name} must have one entry per gene ({g}), got {len(values)}")
        if self.context_um is not None and (d % 2 or not self.context_um > 0):
            raise ValueError(
                f"a head with context needs an even number of rows and a positive radius, got {d}, {self.context_um}"
            )
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
    def measured(self) -> dict[str, npt.NDArray[np.float32]]:
        """What is known of each gene from held-out spots, ``(n_genes,)`` each, by name: those of :data:`MEASURED`."""
        known = {name: getattr(self, name) for name in MEASURED}
        return {name: values for name, values in known.items() if values is not None}

    @cached_property
    def predictable(self) -> npt.NDArray[np.bool_]:
        """Genes that the model was shown to predict, bool ``(n_genes,)``; all of them where nobody measured.

        Their held-out PCC is at least :data:`LEAST_PCC`, and lies above the upper confidence bound of the best
        baseline: what colour, position or chance give. A gene that could not be measured was not shown.
        """
        if self.pcc is None or self.baseline_pcc_high is None:
            return np.ones(len(self.genes), bool)
        pcc = np.nan_to_num(self.pcc, nan=-2)
        return np.asarray((pcc >= LEAST_PCC) & (pcc > np.nan_to_num(self.baseline_pcc_high, nan=0)))

    @property
    def n_dims(self) -> int:
        """Width of the features that the weights read: twice :attr:`embedding_dims` with context."""
        return int(self.weights.shape[0])

    @property
    def embedding_dims(self) -> int:
        """Width of a tile's own embedding: what is computed and stored."""
        return self.n_dims if self.context_um is None else self.n_dims // 2

    def index(self, gene: str) -> int:
        """Return the column of `gene`: a symbol (any case), an Ensembl id, or a name in `core.aliases` (HER2, Ki-67).

        What the model itself calls a gene goes before any other name for it.

        Raises
        ------
        UnknownName
            If the model does not know the gene; near names are offered.
        """
        if (found := self.find(gene)) is not None:
            return found
        name = gene.strip()
        if name.upper().startswith("ENSG") and not any(self.gene_ids):
            raise UnknownName(f"the model has no Ensembl ids, so it does not know {gene!r}; give a gene symbol")
        raise UnknownName(
            f"the model does not know the gene {gene!r} (it predicts {len(self.genes)} genes)"
            + near_names(gene.strip(), self.genes)
        )

    def find(self, gene: str) -> int | None:
        """Return the column of `gene` as :meth:`index` does, or None where the model does not know it."""
        name = gene.strip()
        for key in (name, name.casefold()):
            if key in self._index:
                return self._index[key]
        symbol = symbol_of(name)
        return None if symbol is None else self._index.get(symbol)

    def only(self, genes: Sequence[str]) -> GeneHead:
        """Return the head of some genes, in their order, each once.

        Raises
        ------
        UnknownName
            If the model does not know a gene.
        """
        at = list(dict.fromkeys(self.index(g) for g in genes))
        ids = tuple(self.gene_ids[i] for i in at) if self.gene_ids else ()
        measured = {name: values[at] for name, values in self.measured.items()}
        names = tuple(self.genes[i] for i in at)
        weights, bias = self.weights[:, at], self.bias[at]
        return GeneHead(weights, bias, names, self.unit, ids, context_um=self.context_um, **measured)

    def values(
        self, embeddings: FloatArray, gene: str, neighbours: Neighbours | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the expression of one gene, shape ``(n,)``, in :attr:`unit`; NaN where the embedding is NaN.

        Parameters
        ----------
        embeddings
            The tiles' own, shape ``(n, embedding_dims)``.
        gene
            Symbol or Ensembl id.
        neighbours
            Of these tiles, within :attr:`context_um`; needed by a head with context, read by no other.

        Raises
        ------
        UnknownName
            If the model does not know the gene.
        ValueError
            If the head reads a context and there are no neighbours.
        """
        i = self.index(gene)
        own, *near = np.ascontiguousarray(self.weights[:, i].reshape(-1, self.embedding_dims))
        if not near:
            return np.asarray(halves_dot(embeddings, own) + self.bias[i], np.float32)
        both = halves_dot(embeddings, np.column_stack([own, near[0]]))  # what takes the time is done once for both
        context = self._near(neighbours).mean(np.ascontiguousarray(both[:, 1]))
        return np.asarray(both[:, 0] + self.bias[i] + context, np.float32)

    def matrix(
        self,
        embeddings: FloatArray,
        genes: Sequence[str] | None = None,
        neighbours: Neighbours | None = None,
        rows: slice | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the expression of several genes (all by default), shape ``(n, n_genes)``; else as :meth:`values`.

        Parameters
        ----------
        embeddings, neighbours
            As in :meth:`values`.
        genes
            Symbols or Ensembl ids.
        rows
            The tiles that are asked for; None: all. No more is read than these and their neighbours.
        """
        d, cols = self.embedding_dims, slice(None) if genes is None else [self.index(g) for g in genes]
        near = None if self.context_um is None else self._near(neighbours)
        if rows is not None and near is not None:
            around, near = near.within(rows)
            embeddings = embeddings[around]
        elif rows is not None:
            embeddings = embeddings[rows]
        x = np.asarray(embeddings, np.float32)
        values = (x if near is None else x[near.own]) @ self.weights[:d, cols]
        values += self.bias[cols]
        if near is not None:
            weights = self.weights[d:, cols]
            # the mean commutes with the weights: it is taken where there are fewer columns
            values += near.mean(x @ weights) if weights.shape[1] < d else near.mean(x) @ weights
        return values

    def _near(self, neighbours: Neighbours | None) -> Neighbours:
        if neighbours is None:
            raise ValueError(f"this head reads the neighbours within {self.context_um} µm too; give them")
        return neighbours
