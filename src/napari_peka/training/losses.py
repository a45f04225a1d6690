"""What the student is trained to do. Each term is one function in one list: adding a term is adding a function.

PEKA's own terms are ``kd`` and ``ce``: both read the frozen classifier of the teacher's embeddings, so the student is
asked to lie on the same side of the teacher's borders ("structure alignment", arXiv 2504.07061), and their sum is

    alpha * T^2 * KL(teacher || student at temperature T) + (1 - alpha) * cross-entropy(student, pseudo-label)

with alpha = 0.5, T = 2. All others go beyond the paper and weigh nothing unless somebody says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from napari_peka.core.errors import SettingError, near_names

#: standard deviation below which a pair of tiles says nothing of how alike they are
_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class LossInput:
    """What a batch of ``b`` spots gives to the terms; a tensor that no chosen term reads may be None.

    Parameters
    ----------
    student, teacher
        Translated embedding of the tiles and embedding of the transcriptome, float ``(b, d_teacher)``.
    student_logits, teacher_logits
        What the frozen classifier says of both, ``(b, k)``.
    labels
        Pseudo-labels, int64 ``(b,)``.
    temperature
        T, by which logits are divided in ``kd``.
    genes
        Output of a linear read-out of the image embedding, ``(b, g)``: standardised expression for ``genes``, log of
        the rate per count of the spot for ``poisson`` and ``nb``.
    targets
        Expression standardised per gene, ``(b, g)``.
    counts, totals
        Raw counts of those genes ``(b, g)``, and of all genes of the spot ``(b,)``.
    log_dispersion
        Log of the inverse dispersion of each gene, ``(g,)``.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    student_logits: torch.Tensor
    teacher_logits: torch.Tensor
    labels: torch.Tensor
    temperature: float = 2.0
    genes: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    totals: torch.Tensor | None = None
    log_dispersion: torch.Tensor | None = None


def kd(x: LossInput) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of the classifier's softened answers, mean over spots.

    Source: Hinton et al. 2015 (arXiv 1503.02531), as PEKA uses it: T² keeps the gradient's size when T changes.
    """
    t = x.temperature
    student, teacher = F.log_softmax(x.student_logits / t, 1), F.log_softmax(x.teacher_logits / t, 1)
    return t**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def ce(x: LossInput) -> torch.Tensor:
    """Cross-entropy of the student's answer to the pseudo-label, mean over spots."""
    return F.cross_entropy(x.student_logits, x.labels)


def cosine(x: LossInput) -> torch.Tensor:
    """1 − cosine between student and teacher embedding, mean over spots."""
    return 1 - F.cosine_similarity(x.student, x.teacher, dim=1).mean()


def mse(x: LossInput) -> torch.Tensor:
    """Squared difference of student and teacher embedding, mean over spots and dimensions."""
    return F.mse_loss(x.student, x.teacher)


def relational(x: LossInput) -> torch.Tensor:
    """Squared difference of all pairwise cosines within the batch, mean over pairs of different spots.

    Source: similarity-preserving and relational distillation (Tung & Mori 2019, Park et al. 2019).
    """
    n = len(x.student)
    if n < 2:
        return x.student.sum() * 0
    a, b = (F.normalize(v, dim=1, eps=_EPS) for v in (x.student, x.teacher))
    difference = (a @ a.T - b @ b.T) ** 2
    return (difference.sum() - difference.diagonal().sum()) / (n * (n - 1))


def genes(x: LossInput) -> torch.Tensor:
    """Squared error of directly regressed, standardised expression, mean over spots and genes."""
    return F.mse_loss(_given(x.genes, "genes"), _given(x.targets, "targets"))


def poisson(x: LossInput) -> torch.Tensor:
    """Poisson negative log-likelihood of the raw counts without its constant, mean over spots and genes.

    The mean is ``total * exp(genes)``: depth is known, not learnt.
    """
    log_mean = _given(x.genes, "genes") + _given(x.totals, "totals").log()[:, None]
    return F.poisson_nll_loss(log_mean, _given(x.counts, "counts"), log_input=True, full=False)


def nb(x: LossInput) -> torch.Tensor:
    """Negative-binomial negative log-likelihood of the raw counts, mean over spots and genes.

    Mean as in ``poisson``; variance ``mean + mean² / dispersion``, one dispersion a gene, as in scVI (Lopez et al.
    2018).
    """
    log_mean = _given(x.genes, "genes") + _given(x.totals, "totals").log()[:, None]
    log_r = _given(x.log_dispersion, "log_dispersion")
    return (
        -torch.distributions.NegativeBinomial(log_r.exp(), logits=log_mean - log_r)
        .log_prob(_given(x.counts, "counts"))
        .mean()
    )


Term = Callable[[LossInput], torch.Tensor]
TERMS: dict[str, Term] = {f.__name__: f for f in (kd, ce, cosine, mse, relational, genes, poisson, nb)}
#: terms that read a linear read-out of genes, and what they need to be given; only one may be chosen
GENE_TERMS = ("genes", "poisson", "nb")


def weights(alpha: float = 0.5, more: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the weight of each term that counts.

    Parameters
    ----------
    alpha
        Share of ``kd``; ``ce`` has the rest.
    more
        Weights of other terms, by name in :data:`TERMS`; ``kd`` and ``ce`` may be set here too.

    Raises
    ------
    SettingError
        If there is no such term, a weight is negative, nothing is left to learn from, or two terms would read the
        one read-out of genes differently.
    """
    all_weights = {"kd": alpha, "ce": 1 - alpha} | dict(more or {})
    for name, weight in all_weights.items():
        if name not in TERMS:
            raise SettingError(f"there is no loss term {name!r}{near_names(name, TERMS)}; there are {', '.join(TERMS)}")
        if not weight >= 0:
            raise SettingError(f"the weight of the loss term {name} must be 0 or more, got {weight}")
    chosen = {n: float(w) for n, w in all_weights.items() if w > 0}
    if not chosen:
        raise SettingError("every loss term has weight 0: there is nothing to learn from")
    if len(reading := [n for n in GENE_TERMS if n in chosen]) > 1:
        raise SettingError(f"the loss terms {' and '.join(reading)} exclude each other; choose one")
    return chosen


def total(x: LossInput, chosen: Mapping[str, float]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the weighted sum, and each term's value before weighting."""
    values = {name: TERMS[name](x) for name in chosen}
    return torch.stack([chosen[n] * v for n, v in values.items()]).sum(), values


def _given(value: torch.Tensor | None, name: str) -> torch.Tensor:
    if value is None:
        raise ValueError(f"a chosen loss term needs {name}, which was not given")
    return value
