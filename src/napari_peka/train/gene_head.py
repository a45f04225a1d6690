"""The closed-form read-out from embeddings to genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class LinearMap:
    """``values = features @ weights + bias``: ``weights (d, g)``, ``bias (g,)``, float32."""

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def __call__(self, features: FloatArray) -> npt.NDArray[np.float32]:
        """Apply the map to ``(n, d)`` features."""
        return np.asarray(features, np.float32) @ self.weights + self.bias


def fit_pca_ridge(
    features: FloatArray, targets: FloatArray, *, n_components: int = 256, alpha: float = 1.0
) -> LinearMap:
    """Fit PCA and one ridge read-out for all genes, folded with the centring into one linear map.

    Parameters
    ----------
    features
        Embeddings, shape ``(n_spots, n_dims)``.
    targets
        Expression, shape ``(n_spots, n_genes)``.
    n_components
        Components kept; fewer when there are fewer spots or dimensions.
    alpha
        Ridge penalty relative to the variance of the first component times the number of spots: 1 shrinks the
        strongest direction by half.

    Returns
    -------
    LinearMap
        From raw features to targets.

    Raises
    ------
    ValueError
        If there are fewer than 3 spots, or rows do not match.

    Notes
    -----
    PCA followed by ridge is the read-out of HEST-bench (Jaume et al., NeurIPS 2024) and PEKA (arXiv 2504.07061).
    Dimensions are standardised first, as both do.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(
            f"a read-out needs as many rows of features as of targets and at least 3, got {len(x)}, {len(y)}"
        )
    mean, sd = x.mean(0), x.std(0)
    sd = np.where(sd > 1e-8, sd, 1.0)
    u, s, vt = np.linalg.svd((x - mean) / sd, full_matrices=False)
    k = min(n_components, int((s > s[0] * 1e-8).sum()))
    u, s, vt = u[:, :k], s[:k], vt[:k]
    y_mean = y.mean(0)
    shrink = s / (s**2 + alpha * s[0] ** 2)
    weights = (vt.T * shrink) @ (u.T @ (y - y_mean)) / sd[:, None]
    return LinearMap(weights.astype(np.float32), (y_mean - mean @ weights).astype(np.float32))


def pearson(a: FloatArray, b: FloatArray) -> npt.NDArray[np.float64]:
    """Return the Pearson correlation of each column of two ``(n, g)`` arrays; NaN where one is constant."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norm > 1e-12, (a * b).sum(0) / norm, np.nan))
