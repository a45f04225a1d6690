"""What the training loop works on: pairs to learn from, the module that learns, and how it went."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Rows = npt.NDArray[np.integer]


class Batches(Protocol):
    """Where a module's input comes from: tiles, or activations of a frozen trunk."""

    def training(self, rows: Rows, rng: np.random.Generator) -> torch.Tensor:
        """Return the input for some spots, augmented."""

    def plain(self, rows: Rows) -> torch.Tensor:
        """Return the input for some spots as it is."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """What is to be learnt of ``n`` spots.

    Parameters
    ----------
    teacher
        Scaled teacher embeddings, float32 ``(n, d_teacher)``.
    labels
        Pseudo-labels, int64 ``(n,)``.
    train, validation
        Rows to learn from, and rows by which the best epoch is chosen; both of the training part.
    section
        Section of each spot, ``(n,)``.
    targets
        Standardised expression of the genes that the curve and the gene terms look at, float32 ``(n, g)``.
    counts, totals
        Raw counts of those genes ``(n, g)``, and of all genes ``(n,)``; only ``poisson`` and ``nb`` read them.
    """

    teacher: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    train: Rows
    validation: Rows
    section: npt.NDArray[Any]
    targets: npt.NDArray[np.float32]
    counts: npt.NDArray[np.float32] | None = None
    totals: npt.NDArray[np.float32] | None = None

    @property
    def digest(self) -> str:
        """Hash of all that is to be learnt: a checkpoint of other data is not resumed."""
        h = hashlib.sha256()
        for array in (self.teacher, self.labels, self.train, self.validation, self.targets):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()


class Learner(nn.Module):
    """Student and frozen classifier as one module.

    Parameters
    ----------
    body
        Input of :class:`Batches` to image embedding ``(b, d)``; holds what is adapted.
    translate
        Image embedding to the teacher's width.
    classifier
        Teacher embedding to logits; frozen here.
    dim
        Width of the image embedding.
    n_genes
        Genes of the read-out that a gene term needs; 0 for none.
    counted
        Whether a dispersion of each gene is learnt as well.
    """

    def __init__(
        self, body: nn.Module, translate: nn.Module, classifier: nn.Module, dim: int, n_genes: int = 0,
        counted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body, self.translate = body, translate
        self.classifier = classifier.requires_grad_(False)
        self.genes = nn.Linear(dim, n_genes) if n_genes else None
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes)) if n_genes and counted else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return image embedding, translated embedding, the classifier's logits, and the read-out of genes."""
        image = self.body(x)
        student = self.translate(image)
        genes = None if self.genes is None else self.genes(image)
        return image, student, self.classifier(student), genes


@dataclass
class Epoch:
    """One line of the learning curve."""

    epoch: int
    train_loss: float
    val_loss: float
    val_pcc: float
    lr: float
    images_per_second: float
    terms: dict[str, float] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, float]:
        """The epoch as one flat row."""
        flat = {k: v for k, v in asdict(self).items() if k != "terms"}
        return flat | {f"train_{k}": v for k, v in self.terms.items()}


@dataclass
class History:
    """How training went.

    Parameters
    ----------
    epochs
        One entry an epoch.
    best
        Epoch (from 1) with the lowest held-out loss; the last one where nothing was held out.
    kept
        Epoch whose weights the learner has now.
    stopped
        Why it ended before its last epoch; empty when it did not.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    kept: int = 0
    stopped: str = ""


@dataclass(frozen=True, eq=False)
class Watch:
    """Spots that somebody looks at after each epoch. What they show decides nothing: no weight, no epoch.

    Parameters
    ----------
    rows
        Which spots; None: the validation rows.
    expression
        Of all ``n`` spots, in its unit, of the genes that are looked at, float32 ``(n, g)``; of the training rows
        alone something is learnt.
    """

    rows: Rows | None
    expression: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Look:
    """What a quick read-out says of the watched spots after an epoch.

    Parameters
    ----------
    epoch
        From 1; 0 is the encoder as it was before training.
    rows
        The watched spots.
    predicted
        float32 ``(len(rows), g)``, in the unit of what is watched.
    val_pcc
        Held-out PCC, as :class:`Epoch` has it.
    entry
        The line of the learning curve; None before training.
    """

    epoch: int
    rows: Rows
    predicted: npt.NDArray[np.float32]
    val_pcc: float
    entry: Epoch | None = None


OnLook = Callable[[Look], None]
#: called after each epoch with the curve so far and the embeddings of the validation rows; False ends the training
OnEpoch = Callable[[History, npt.NDArray[np.float32]], bool | None]
