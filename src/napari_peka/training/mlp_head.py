"""A small MLP as read-out: hidden layers that a bundle stores as its translation, and a linear head on top."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from napari_peka.core.errors import SettingError, TrainingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.training.gene_head import FittedHead, checked

FloatArray = npt.NDArray[np.floating]
Float32Array = npt.NDArray[np.float32]
MIN_SPOTS = 10


@dataclass(frozen=True, eq=False)
class MlpHead:
    """An MLP with one hidden layer of ReLU and a narrow linear layer, and a linear head for all genes.

    Parameters
    ----------
    layers
        Weight ``(out, in)`` and bias ``(out,)`` of the two layers before the head, float32, as torch's ``Linear`` has
        them; ReLU stands between. A bundle stores them as ``translate``.
    head
        From the narrow layer to genes.
    record
        How it was fitted, fit for JSON.
    """

    layers: tuple[tuple[Float32Array, Float32Array], tuple[Float32Array, Float32Array]]
    head: FittedHead
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def dims(self) -> list[int]:
        """Widths from the features to the narrow layer, as ``translate_mlp`` takes them."""
        return [self.layers[0][0].shape[1], *(w.shape[0] for w, _ in self.layers)]

    def translate(self, features: FloatArray) -> Float32Array:
        """Return the narrow layer's values for ``(n, d)`` features."""
        (w1, b1), (w2, b2) = self.layers
        return np.maximum(np.asarray(features, np.float32) @ w1.T + b1, 0) @ w2.T + b2

    def __call__(self, features: FloatArray) -> Float32Array:
        """Predict from ``(n, d)`` features, shape ``(n, g)``."""
        return self.head(self.translate(features))


@dataclass(frozen=True)
class MlpSettings:
    """How an MLP head is fitted. The defaults were chosen on sections of her2st patient C left out in turn.

    Parameters
    ----------
    hidden, width
        Units of the hidden layer, and of the narrow one that all genes are read from.
    epochs, patience
        Passes at most, and passes without a smaller validation error after which the number of passes is settled.
    lr, weight_decay, batch_size
        Of AdamW.
    dropout
        Share of hidden units left out in a pass.
    """

    hidden: int = 256
    width: int = 64
    epochs: int = 300
    patience: int = 20
    lr: float = 3e-4
    weight_decay: float = 1.0
    batch_size: int = 64
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if min(self.hidden, self.width, self.epochs, self.patience, self.batch_size) < 1 or not 0 <= self.dropout < 1:
            raise SettingError(f"an MLP head needs sizes of at least 1 and dropout from 0 to below 1, got {self}")


def fit_mlp_head(
    features: FloatArray,
    targets: FloatArray,
    *,
    settings: MlpSettings | None = None,
    seed: int = 0,
    progress: Progress = NULL,
) -> MlpHead:
    """Fit a small MLP for all genes at once, by squared error of standardised expression.

    It is fitted twice: on four fifths of the spots, to find after how many passes the error of the others is least;
    then from the start on all spots, for so many passes. Constant targets are predicted as such.

    Parameters
    ----------
    features, targets
        Shapes ``(n, d)`` and ``(n, g)``.
    settings
        Sizes and rates; None for the defaults.
    seed
        Of first weights, batches and validation part.
    progress
        Where to report.

    Raises
    ------
    TrainingError
        If there are fewer than 10 spots, a number is missing (NaN or infinite), no target varies, or the error stops
        being a number.
    """
    settings = settings or MlpSettings()
    x, y, _, _ = checked(features, targets, None, None)
    if len(x) < MIN_SPOTS:
        raise TrainingError(f"an MLP head needs at least {MIN_SPOTS} spots, got {len(x)}; use the ridge head")
    x_mean, x_sd = _moments(x)
    y_mean, y_sd = _moments(y)
    constant = y.max(0) == y.min(0)
    if constant.all():
        raise TrainingError(
            f"none of the {y.shape[1]} targets varies over the {len(x)} spots; there is nothing to learn"
        )
    xs = torch.from_numpy(((x - x_mean) / x_sd).astype(np.float32))
    ys = torch.from_numpy(((y - y_mean) / y_sd).astype(np.float32))
    order = np.random.default_rng(seed).permutation(len(x))
    held = order[: len(x) // 5]
    progress.stage("settling how long to fit the MLP head", settings.epochs)
    _, passes, error = _train(xs, ys, order[len(held) :], held, settings, seed, progress)
    progress.stage("fitting the MLP head", passes)
    model, _, _ = _train(xs, ys, order, None, replace(settings, epochs=passes), seed, progress)
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy().astype(np.float64) for p in model.parameters())
    w1, w3, b3 = w1 / x_sd, np.where(constant[:, None], 0, w3), np.where(constant, 0, b3)
    head = FittedHead(
        *_float32(w3.T * y_sd, b3 * y_sd + y_mean), alpha=settings.weight_decay, n_components=settings.width
    )
    record = {"method": "mlp", "n_spots": len(x), "passes": passes, "validation_error": round(error, 4), "seed": seed}
    return MlpHead((_float32(w1, b1 - w1 @ x_mean), _float32(w2, b2)), head, record | asdict(settings))


def _train(
    x: torch.Tensor,
    y: torch.Tensor,
    rows: npt.NDArray[np.intp],
    held: npt.NDArray[np.intp] | None,
    settings: MlpSettings,
    seed: int,
    progress: Progress,
) -> tuple[nn.Sequential, int, float]:
    """Return the trained model, the pass with the least error of the held-out rows, and that error."""
    s, rng = settings, np.random.default_rng(seed)
    # the program's own random numbers stay where they are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(x.shape[1], s.hidden), nn.ReLU(), nn.Dropout(s.dropout),
            nn.Linear(s.hidden, s.width), nn.Linear(s.width, y.shape[1]),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=s.weight_decay, fused=True)
        best, at = math.inf, s.epochs
        for epoch in range(1, s.epochs + 1):
            model.train()
            for part in np.array_split(rng.permutation(rows), -(-len(rows) // s.batch_size)):
                loss = F.mse_loss(model(x[part]), y[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            model.eval()
            with torch.no_grad():
                now = float(loss) if held is None else float(F.mse_loss(model(x[held]), y[held]))
            if not math.isfinite(now):
                raise TrainingError(
                    f"the MLP head diverged in pass {epoch}: its error is {now}; lower its learning rate"
                )
            progress.advance(error=now)
            if held is not None and now < best:
                best, at = now, epoch
            if held is not None and epoch - at >= s.patience:
                break
    return model, at, best


def _moments(values: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    mean, sd = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return mean, np.where(sd > 1e-6 * (1 + np.abs(mean)), sd, 1.0)


def _float32(weight: FloatArray, bias: FloatArray) -> tuple[Float32Array, Float32Array]:
    return np.asarray(weight, np.float32), np.asarray(bias, np.float32)
