"""scVI trained on the training spots as a teacher."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from napari_peka.core.errors import TrainingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.training.teachers.base import Expression, Float32Array, not_fitted, require, variable_genes

N_GENES = 2000
_BATCH = "section"


class ScviTeacher:
    """Mean of scVI's latent variable for each spot.

    Parameters
    ----------
    n_dims
        Latent dimensions.
    n_genes
        Variable genes, chosen on the training spots; raw counts of these are modelled.
    epochs
        Passes at most; None for scvi-tools' own choice by the number of spots. A tenth of the training spots decides
        when to stop.
    seed
        Of initial weights and batches.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Notes
    -----
    Lopez et al., Nature Methods 2018, with a negative binomial likelihood. The section is the batch of the decoder
    alone: scVI's encoder reads only counts (its default), so a spot of a section that it has never seen can be
    embedded, under the name of any batch.
    """

    name = "scvi"

    def __init__(
        self,
        n_dims: int = 10,
        *,
        n_genes: int = N_GENES,
        epochs: int | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        require("scvi", "scvi-tools", self.name)
        self.n_dims, self.n_genes, self.epochs, self.seed, self.device = n_dims, n_genes, epochs, seed, device
        self.genes: tuple[str, ...] = ()
        self._model: Any = None
        self._record: dict[str, Any] = {}

    def fit(self, train: Expression, *, progress: Progress = NULL) -> None:
        """Train on the training spots.

        Raises
        ------
        TrainingError
            If training gives no numbers.
        """
        # scvi-tools imports torchvision by way of lightning
        ensure_torchvision()
        import scvi

        self.genes = tuple(train.genes[i] for i in variable_genes(train, self.n_genes))
        data = self._data(train, train.sections, train.section)
        report = _reporter(progress)
        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            scvi.settings.seed = self.seed
            scvi.model.SCVI.setup_anndata(data, batch_key=_BATCH)
            self._model = scvi.model.SCVI(data, n_latent=self.n_dims, gene_likelihood="nb")
            epochs = self.epochs or min(round(20_000 / len(train) * 400), 400)
            kind, _, number = self.device.partition(":")
            progress.stage("training scVI", epochs)
            self._model.train(
                max_epochs=epochs,
                train_size=0.9,
                early_stopping=True,
                batch_size=_batch_size(len(train)),
                accelerator=kind,
                devices=[int(number)] if number else 1,
                enable_progress_bar=False,
                logger=False,
                default_root_dir=scratch,
                callbacks=[report],
            )
        self._record = {"n_train_spots": len(train), "batches": list(train.sections), "epochs": report.epochs}
        if not np.isfinite(self.embed(train)).all():
            raise TrainingError("scVI gave no numbers (NaN) on these sections; use another teacher or seed")

    def embed(self, expression: Expression) -> Float32Array:
        """Return latent means of any spots, float32 ``(n, n_dims)``."""
        if self._model is None:
            raise not_fitted(self.name)
        first = self._record["batches"][0]
        data = self._data(expression, self._record["batches"], np.full(len(expression), first))
        with _quiet():
            return np.asarray(self._model.get_latent_representation(data, give_mean=True), np.float32)

    def record(self) -> dict[str, Any]:
        """Return what made the embeddings."""
        return self._record | {
            "name": self.name, "n_dims": self.n_dims, "n_genes": len(self.genes), "likelihood": "nb",
            "seed": self.seed, "scvi-tools": version("scvi-tools"),
        }  # fmt: skip

    def _data(self, expression: Expression, batches: tuple[str, ...], section: Any) -> Any:
        import anndata as ad

        obs = pd.DataFrame(
            {_BATCH: pd.Categorical(section, categories=list(batches))}, index=[str(i) for i in range(len(expression))]
        )
        return ad.AnnData(expression.columns(self.genes).copy(), obs=obs, var=pd.DataFrame(index=list(self.genes)))


def _batch_size(n: int) -> int:
    """Return scvi-tools' 128, or less: the last batch must not hold a single spot, which batch norm refuses."""
    return next(size for size in (128, 127, 126, 125) if round(n * 0.9) % size != 1)


def _reporter(progress: Progress) -> Any:
    """Return a callback that counts epochs and by which training can be cancelled."""
    from lightning.pytorch.callbacks import Callback

    class Report(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.epochs += 1
            progress.advance()

    return Report()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep scvi-tools and lightning from talking: scvi-tools does so on stdout, where a command's JSON goes."""
    loggers = [logging.getLogger(name) for name in ("scvi", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
