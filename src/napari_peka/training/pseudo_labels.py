"""PEKA's frozen classifier: clusters of teacher embeddings, and the MLP that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from napari_peka.core.errors import TrainingError
from napari_peka.core.progress import NULL, Progress

Float32Array = npt.NDArray[np.float32]

#: clusters of the authors' published code (arXiv 2504.07061 does not say how many)
N_CLUSTERS = 100
#: spots that a cluster should have on average: fewer are not told apart from noise
SPOTS_A_CLUSTER = 20
#: the classifier of the authors' published code
HIDDEN, LR, EPOCHS, BATCH = 512, 1e-4, 20, 32
VALIDATION = 0.2
#: steps of Adam below which 1e-4 leaves the classifier near its first weights
MIN_STEPS = 2000
#: starts of k-means, of which the tightest is kept
_STARTS = 5


@dataclass(frozen=True, eq=False)
class Scaling:
    """Shift each dimension by its mean, and divide all by one number.

    One number, since a teacher's dimensions are as large as they matter: dividing each by its own spread gives the last
    principal component, which is noise, the weight of the first. On her2st sections (PCA of 50 dimensions, 20
    clusters) the HVG50 told by a held-out spot's cluster then correlate 0.39 with the truth, and 0.57 with one number
    for all. The authors cluster embeddings as they are, which is the same for k-means.

    Parameters
    ----------
    mean
        float32 ``(d,)``.
    scale
        Root of the mean square of the shifted values.
    """

    mean: Float32Array
    scale: float

    @classmethod
    def of(cls, embeddings: npt.NDArray[np.floating]) -> Scaling:
        """Return that of (training) embeddings, ``(n, d)``."""
        mean = embeddings.mean(0, dtype=np.float64)
        scale = float(np.sqrt(((embeddings - mean) ** 2).mean()))
        return cls(mean.astype(np.float32), scale if scale > 1e-12 else 1.0)

    def __call__(self, embeddings: npt.NDArray[np.floating]) -> Float32Array:
        """Return scaled embeddings, float32 ``(n, d)``."""
        return np.asarray((embeddings - self.mean) / self.scale, np.float32)


def centred_by_section(
    embeddings: npt.NDArray[np.floating], section: npt.NDArray[Any], train: npt.NDArray[np.bool_]
) -> Float32Array:
    """Subtract each section's mean, so that clusters are kinds of spots and not sections.

    Parameters
    ----------
    embeddings
        Of all spots, ``(n, d)``.
    section
        Section of each spot, ``(n,)``.
    train
        Spots whose mean is taken, bool ``(n,)``; a section without any takes the mean of its own spots, which moves
        none of them against another.

    Returns
    -------
    ndarray
        float32 ``(n, d)``.
    """
    out = np.asarray(embeddings, np.float32).copy()
    for name in np.unique(section):
        own = section == name
        out[own] -= out[own & train if (own & train).any() else own].mean(0, dtype=np.float64).astype(np.float32)
    return out


class Classifier(nn.Module):
    """Teacher embedding ``(b, d)`` to logits of the clusters ``(b, k)``.

    The scaling of its input is part of it, so that student and teacher embeddings go through the same.

    Parameters
    ----------
    scaling
        Of the training embeddings.
    n_clusters
        ``k``.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, scaling: Scaling, n_clusters: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scaling.mean.copy()))
        self.register_buffer("scale", torch.tensor(scaling.scale, dtype=torch.float32))
        d = len(scaling.mean)
        self.layers = nn.Sequential(
            nn.Linear(d, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_clusters)
        )

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        out: torch.Tensor = self.layers((embeddings - self.mean) / self.scale)
        return out


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Clusters and the classifier of them.

    Parameters
    ----------
    labels
        Cluster of every spot, int64 ``(n,)``; of spots that did not train, that of the nearest centre.
    centres
        Centres of the clusters in the teacher's units, float32 ``(k, d)``.
    classifier
        Frozen, eval mode, CPU.
    record
        What made them, fit for JSON.
    """

    labels: npt.NDArray[np.int64]
    centres: Float32Array
    classifier: Classifier
    record: dict[str, Any]

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.centres)


def fit_pseudo_labels(
    embeddings: npt.NDArray[np.floating],
    train: npt.NDArray[np.bool_],
    *,
    n_clusters: int = N_CLUSTERS,
    seed: int = 0,
    progress: Progress = NULL,
) -> PseudoLabels:
    """Cluster the training embeddings and fit the classifier that the student is held to.

    Parameters
    ----------
    embeddings
        Teacher embeddings of all spots, ``(n, d)``.
    train
        Which of them train, bool ``(n,)``.
    n_clusters
        At most: fewer are made when there are fewer than 20 training spots for each, which is noted.
    seed
        Of k-means, first weights, batches and the classifier's own validation part.
    progress
        Where to report.

    Raises
    ------
    TrainingError
        If the training embeddings are not numbers, or fewer than two of them differ.

    Notes
    -----
    PEKA's pipeline (arXiv 2504.07061 and the authors' published code): k-means, then an MLP with two hidden layers of
    512 by Adam at 1e-4 for 20 epochs, the best epoch by its validation part kept. Twenty epochs of a few hundred spots
    are too few steps, so that there are at least 2,000.
    """
    own = np.asarray(embeddings[train], np.float32)
    if n := int((~np.isfinite(own).all(1)).sum()):
        raise TrainingError(f"the teacher gave no numbers (NaN or infinite) for {n} of {len(own)} training spots")
    scaling = Scaling.of(own)
    scaled = scaling(embeddings)
    k = _how_many(scaled[train], n_clusters, progress)
    progress.stage(f"clustering {len(own)} spots")
    centres = _k_means(scaled[train], k, seed)
    labels = nearest(scaled, centres)
    classifier, record = _fit_classifier(own, labels[train], scaling, k, seed, progress)
    sizes = np.bincount(labels[train], minlength=k)
    record |= {"n_clusters": k, "asked_for": n_clusters, "cluster_sizes": [int(sizes.min()), int(sizes.max())]}
    return PseudoLabels(labels, centres * scaling.scale + scaling.mean, classifier, record | {"seed": seed})


def nearest(embeddings: npt.NDArray[np.floating], centres: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return the nearest of ``(k, d)`` centres for each of ``(n, d)`` embeddings, int64 ``(n,)``."""
    x, c = np.asarray(embeddings, np.float64), np.asarray(centres, np.float64)
    # |x|² is the same for all centres
    return np.asarray(((c**2).sum(1) - 2 * x @ c.T).argmin(1), np.int64)


def _how_many(embeddings: Float32Array, asked: int, progress: Progress) -> int:
    """Return how many clusters there can be, and say why when they are fewer than asked for."""
    n, different = len(embeddings), len(np.unique(embeddings, axis=0))
    if different < 2:
        raise TrainingError(
            f"the teacher's embeddings of the {n} training spots do not differ, so there are no clusters; give more "
            "spots, or use another teacher"
        )
    k = min(asked, max(2, n // SPOTS_A_CLUSTER), different)
    if k < asked:
        why = f"{n} training spots" if k < different else f"{different} different embeddings"
        progress.note(f"{why} give {k} pseudo-labels, not {asked}: about {SPOTS_A_CLUSTER} spots are needed for each")
    return k


def _k_means(embeddings: Float32Array, k: int, seed: int) -> Float32Array:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # its threads add up in whatever order they finish: one of them alone gives the same centres each time
    with threadpool_limits(limits=1, user_api="openmp"):
        found = KMeans(k, n_init=_STARTS, random_state=seed).fit(embeddings)
    return np.asarray(found.cluster_centers_, np.float32)


def _fit_classifier(
    embeddings: Float32Array,
    labels: npt.NDArray[np.int64],
    scaling: Scaling,
    k: int,
    seed: int,
    progress: Progress,
) -> tuple[Classifier, dict[str, Any]]:
    """Fit the classifier on four fifths of the training spots; the others choose its epoch."""
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(embeddings)))
    n_held = max(1, round(VALIDATION * len(order)))
    held, own = order[:n_held], order[n_held:]
    x, y = torch.from_numpy(embeddings), torch.from_numpy(labels)
    # the program's own random numbers stay where they are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(scaling, k)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=LR, fused=True)
    epochs = max(EPOCHS, -(-MIN_STEPS // -(-len(own) // BATCH)))
    best, kept, kept_epoch = float("inf"), classifier.state_dict(), 0
    progress.stage("fitting the pseudo-label classifier", epochs)
    for epoch in range(epochs):
        for rows in own[torch.from_numpy(rng.permutation(len(own)))].split(BATCH):
            loss = F.cross_entropy(classifier(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            now = float(F.cross_entropy(classifier(x[held]), y[held]))
        if now < best:
            best, kept_epoch = now, epoch + 1
            kept = {name: value.clone() for name, value in classifier.state_dict().items()}
        progress.advance(validation_loss=now)
    classifier.load_state_dict(kept)
    classifier.eval().requires_grad_(False)
    right = float((classifier(x[held]).argmax(1) == y[held]).float().mean())
    return classifier, {
        "classifier": {
            "hidden": [HIDDEN, HIDDEN],
            "lr": LR,
            "batch": BATCH,
            "epochs": epochs,
            "kept_epoch": kept_epoch,
            "validation_spots": n_held,
            "validation_loss": round(best, 4),
            "validation_accuracy": round(right, 4),
        }
    }
