"""The closed-form read-out from embeddings to genes: PCA and ridge, folded into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError, TrainingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.training.ridge import (
    Projection,
    coefficients,
    decompose,
    gcv_scores,
    held_out_pcc,
    project,
)

FloatArray = npt.NDArray[np.floating]

#: the read-out of the PEKA authors' published code: PCA of unscaled features, then ridge (arXiv 2504.07061)
PAPER: dict[str, Any] = {"n_components": 256, "alpha": 1.0, "standardise": False}
#: penalties tried, as shares of the square of the features' largest singular value, so that they mean the same for any
#: number of spots and dimensions; the strongest comes first and wins a draw
RELATIVE_ALPHAS = tuple(float(10.0**e) for e in np.arange(1, -5.25, -0.5))
MIN_SPOTS = 3
#: rows that train, bool ``(n,)``, to what they are fitted on, ``(rows, g)``
Prepare = Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A read-out: ``values = features @ weights + bias``.

    Parameters
    ----------
    weights, bias
        float32, shapes ``(d, g)`` and ``(g,)``.
    alpha
        Ridge penalty in scikit-learn's sense.
    n_components
        Principal components that were kept.
    record
        What was tried and chosen, fit for JSON.
    warnings
        What a person should know: fewer components than asked for, constant genes.
    """

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    alpha: float
    n_components: int
    record: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __call__(self, features: FloatArray) -> npt.NDArray[np.float32]:
        """Predict from ``(n, d)`` features, shape ``(n, g)``."""
        return np.asarray(features, np.float32) @ self.weights + self.bias


def hest_bench_alpha(n_components: int, n_genes: int) -> float:
    """Return the penalty of HEST-bench's linear probe, ``100 / (components x genes)``.

    Source: ``train_test_reg`` in mahmoodlab/HEST (Jaume et al., NeurIPS 2024), after standardising and PCA(256).
    """
    return 100.0 / (n_components * n_genes)


def fit_head(
    features: FloatArray,
    targets: FloatArray,
    *,
    n_components: int | Sequence[int] | None = 256,
    alpha: float | Literal["gcv", "groups"] = 1.0,
    groups: Sequence[Any] | npt.NDArray[Any] | None = None,
    sample_weight: FloatArray | None = None,
    standardise: bool = True,
    judged_genes: Sequence[int] | npt.NDArray[np.integer] | None = None,
    prepare: Prepare | None = None,
    progress: Progress = NULL,
) -> FittedHead:
    """Fit PCA and ridge for all genes at once.

    Parameters
    ----------
    features
        Embeddings, shape ``(n, d)``.
    targets
        Expression, shape ``(n, g)``; float32 is enough. At most a few thousand genes at a time are copied.
    n_components
        Principal components kept (fewer when there are fewer); several to choose among them, where `alpha` is
        ``"gcv"`` or ``"groups"``; None for all.
    alpha
        Penalty on the squared weights of the components against the sum of squared errors, as in scikit-learn.
        ``"gcv"``: by generalised cross-validation. ``"groups"``: the best mean PCC when each group is left out in turn.
        Both try :data:`RELATIVE_ALPHAS`.
    groups
        Group (section, patient) of each spot, for ``"groups"``.
    sample_weight
        Weight of each spot, shape ``(n,)``; spots of weight 0 are left out.
    standardise
        Divide each dimension by its standard deviation before PCA: features of several kinds then count alike.
        HEST-bench does so, the PEKA authors do not (:data:`PAPER`).
    judged_genes
        Columns of `targets` by which components and penalty are chosen; None for all. Fewer genes make ``"groups"``
        as fast as ``"gcv"``.
    prepare
        Makes of the targets of some spots what the head is fitted on in their place, such as less noisy ones; called
        for each part that trains. Components and penalty are always judged by the targets themselves.
    progress
        Where to report; a step for each group left out.

    Returns
    -------
    FittedHead
        From raw features to targets.

    Raises
    ------
    TrainingError
        If there are fewer than 3 spots, if no target varies, or if a number is missing (NaN or infinite).
    SettingError
        If a setting cannot be used, such as leaving out groups where there is one.

    Notes
    -----
    PCA followed by ridge is the read-out of HEST-bench (Jaume et al., NeurIPS 2024) and PEKA (arXiv 2504.07061).
    """
    x, y, weight, named = checked(features, targets, sample_weight, groups)
    searched = alpha in ("gcv", "groups")
    if not searched and (isinstance(alpha, str) or not alpha >= 0):
        raise SettingError(f"alpha must be a number from 0 up, 'gcv' or 'groups', got {alpha!r}")
    counts = _counts(n_components, searched)
    directions = decompose(x, standardise=standardise, limit=max(counts, default=None), weight=weight)
    k = len(directions.values)
    if not k:
        raise TrainingError("all spots have the same features, so nothing can be read out of them")
    tried = sorted({min(c, k) for c in counts} or {k})
    progress.stage("fitting the gene head")
    projection = project(directions.scores(x), directions.values, y, weight=weight)
    warnings = _warnings(x, projection, asked=max(counts, default=k), have=k)
    record: dict[str, Any] = {
        "method": "pca+ridge", "n_spots": len(x), "n_dims": x.shape[1], "standardised": standardise,
        "weighted": weight is not None, "alpha_chosen_by": alpha if searched else "given",
        "constant_targets": int((projection.squares == 0).sum()),
    }  # fmt: skip
    count = tried[-1]
    if searched:
        judged = np.arange(y.shape[1]) if judged_genes is None else np.asarray(judged_genes)
        if alpha == "gcv":
            grid = [a * float(directions.values[0]) ** 2 for a in RELATIVE_ALPHAS]
            scores = -gcv_scores(directions.values, projection, len(x), counts=tried, alphas=grid)[:, :, judged]
        else:
            part = y if judged_genes is None else y[:, judged]
            learn = None if prepare is None else lambda rows: prepare(rows)[:, judged]
            scores = _leave_groups_out(x, part, named, weight, tried, standardise, learn, progress)
        count, relative = _choose(scores, tried, record)
        alpha = relative * float(directions.values[0]) ** 2
    if prepare is not None:
        projection = project(directions.scores(x), directions.values, prepare(np.ones(len(x), bool)), weight=weight)
    weights, bias = coefficients(directions, projection, count, float(alpha))
    record |= {"n_components": count, "alpha": float(alpha)}
    return FittedHead(weights.astype(np.float32), bias.astype(np.float32), float(alpha), count, record, warnings)


def pearson(a: FloatArray, b: FloatArray) -> npt.NDArray[np.float64]:
    """Return the Pearson correlation of each column of two ``(n, g)`` arrays; NaN where one is constant."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norm > 1e-12, (a * b).sum(0) / norm, np.nan))


def narrowed(
    head: FittedHead, features: FloatArray, rank: int, parts: int = 1
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], FittedHead]:
    """Split a head of low rank into a narrow linear layer and a head that reads it; predictions stay the same.

    A head fitted on `rank` common directions of the genes has no more than that many itself. Kept apart, a tile is
    `rank` numbers, not hundreds, and a gene's map is a product with these.

    Parameters
    ----------
    head
        Weights ``(parts * d, g)``; with 2 parts the second reads the mean of the neighbours' features.
    features
        Of the training spots, ``(n, d)``: each narrow number is scaled to their unit variance.
    rank
        Directions of the genes.
    parts
        1, or 2 with context.

    Returns
    -------
    weight, bias
        Of the narrow layer, as torch's ``Linear`` has them: ``(parts * rank, d)`` and zeros ``(parts * rank,)``.
    head
        Weights ``(parts * parts * rank, g)``: with context, the tile's own numbers first, then its neighbours'.
    """
    d = len(head.weights) // parts
    u, s, vt = np.linalg.svd(np.asarray(head.weights, np.float64), full_matrices=False)
    layer = np.concatenate([(u[:, :rank] * s[:rank])[k * d : (k + 1) * d] for k in range(parts)], axis=1)
    spread = (np.asarray(features, np.float64) @ layer).std(0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    genes = np.zeros((parts, parts, rank, vt.shape[1]))
    for k in range(parts):  # the k-th part of the layer is read of the k-th part of the features
        genes[k, k] = spread[k * rank : (k + 1) * rank, None] * vt[:rank]
    weights = genes.reshape(-1, vt.shape[1]).astype(np.float32)
    narrow = (layer / spread).T.astype(np.float32)
    return narrow, np.zeros(len(narrow), np.float32), replace(head, weights=weights)


def checked(
    features: FloatArray, targets: FloatArray, weight: FloatArray | None, groups: Any
) -> tuple[FloatArray, FloatArray, FloatArray | None, npt.NDArray[Any] | None]:
    """Return the arrays without the spots of weight 0, or say what is wrong with them."""
    x, y = np.asarray(features), np.asarray(targets)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise TrainingError(
            f"a read-out needs a row of features and a row of targets for each spot, got {x.shape} and {y.shape}"
        )
    if groups is not None:
        groups = np.asarray(groups)
        if len(groups) != len(x):
            raise SettingError(f"groups must name one group for each of the {len(x)} spots, got {len(groups)}")
    if weight is not None:
        weight = np.asarray(weight, np.float64)
        if weight.shape != (len(x),) or not np.isfinite(weight).all() or (weight < 0).any():
            raise SettingError(f"sample_weight must be {len(x)} numbers from 0 up")
        kept = weight > 0
        x, y, weight = x[kept], y[kept], weight[kept]
        groups = groups[kept] if groups is not None else None
    if len(x) < MIN_SPOTS:
        raise TrainingError(f"a read-out needs at least {MIN_SPOTS} spots, got {len(x)}")
    for values, what in ((x, "features (tiles that could not be read have none)"), (y, "targets")):
        if len(bad := np.flatnonzero(~np.isfinite(values.sum(1, dtype=np.float64)))):
            first = ", ".join(map(str, bad[:3]))
            raise TrainingError(
                f"{len(bad)} of {len(values)} spots have no finite {what}, first rows {first}; leave those spots out"
            )
    return x, y, weight, groups


def _warnings(x: FloatArray, projection: Projection, *, asked: int, have: int) -> tuple[str, ...]:
    n, g = len(x), len(projection.mean)
    said = []
    if have < min(asked, x.shape[1]):  # what there is no more of is no loss
        said.append(f"{n} spots of {x.shape[1]} numbers have {have} principal components, not {asked}: {have} are used")
    constant = int((projection.squares == 0).sum())
    if constant == g:
        raise TrainingError(f"none of the {g} targets varies over the {n} spots: there is nothing to learn")
    if constant:
        said.append(f"{constant} of {g} targets are constant over the spots; they are predicted as such")
    return tuple(said)


def _counts(n_components: int | Sequence[int] | None, searched: bool) -> list[int]:
    counts = [] if n_components is None else [n_components] if isinstance(n_components, int) else list(n_components)
    if any(c < 1 for c in counts) or (n_components is not None and not counts):
        raise SettingError(f"n_components must be 1 or more, got {n_components}")
    if len(counts) > 1 and not searched:
        raise SettingError(f"several n_components ({n_components}) need alpha 'gcv' or 'groups' to choose among them")
    return counts


def _leave_groups_out(
    x: FloatArray, y: FloatArray, groups: npt.NDArray[Any] | None, weight: FloatArray | None, counts: list[int],
    standardise: bool, prepare: Prepare | None, progress: Progress,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Return the mean PCC over groups left out in turn, shape ``(n_counts, n_alphas, g)``."""
    if groups is None or len(names := np.unique(groups)) < 2:
        have = "none was given" if groups is None else f"all spots are of {groups[0]}"
        raise SettingError(f"leaving groups out needs at least two groups, but {have}; use alpha 'gcv'")
    progress.stage("choosing the penalty by groups left out", len(names))
    total = np.zeros((len(counts), len(RELATIVE_ALPHAS), y.shape[1]))
    judged = np.zeros(total.shape, np.int32)
    for name in names:
        held = groups == name
        kept = ~held
        progress.advance()
        if min(held.sum(), kept.sum()) < MIN_SPOTS:
            continue
        w = weight[kept] if weight is not None else None
        directions = decompose(x[kept], standardise=standardise, limit=max(counts), weight=w)
        values = directions.values
        if not len(values):
            continue
        learnt, rows = (y, kept) if prepare is None else (prepare(kept), slice(None))
        z = project(directions.scores(x[kept]), values, learnt, rows=rows, weight=w).z
        pcc = held_out_pcc(
            directions.scores(x[held]), values, z, y, held, counts=counts,
            alphas=[a * values[0] ** 2 for a in RELATIVE_ALPHAS],
        )  # fmt: skip
        judged += np.isfinite(pcc)
        total += np.nan_to_num(pcc)
    with np.errstate(invalid="ignore"):
        return total / np.where(judged > 0, judged, np.nan)


def _choose(scores: npt.NDArray[np.float64], counts: list[int], record: dict[str, Any]) -> tuple[int, float]:
    """Return the best number of components and relative penalty; the simplest of equals."""
    scores = scores[:, :, ~np.isnan(scores).any((0, 1))]
    if not scores.size:
        raise TrainingError("no gene varies in the spots left out, so no penalty can be chosen by them; give alpha")
    table = scores.mean(2)
    i, j = np.unravel_index(int(table.argmax()), table.shape)
    record["score"] = "mean PCC over groups left out" if record["alpha_chosen_by"] == "groups" else "-GCV / variance"
    record["tried"] = [
        {"n_components": c, "relative_alpha": a, "score": round(float(table[m, n]), 6)}
        for m, c in enumerate(counts)
        for n, a in enumerate(RELATIVE_ALPHAS)
        if np.isfinite(table[m, n])
    ]
    record["relative_alpha"] = RELATIVE_ALPHAS[j]
    return counts[i], RELATIVE_ALPHAS[j]
