"""A model's gene head fitted anew on measured spots: what it sees in a tile stays, so maps need no new inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import HeadConfig, PredictConfig, RefitConfig, TrainConfig
from napari_peka.core import files
from napari_peka.core.errors import OutputMismatch, SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.cache import TILES, kept_in
from napari_peka.io.prediction import Prediction
from napari_peka.io.section import Section, as_sections
from napari_peka.models.bundle import Model, read_bundle
from napari_peka.training import splits
from napari_peka.training.baselines import BEFORE
from napari_peka.training.denoise import depth_weights
from napari_peka.training.evaluate import EvaluationReport, evaluate
from napari_peka.training.gene_head import FittedHead
from napari_peka.training.paired import Paired, gather
from napari_peka.training.report_words import TRAINED_ON
from napari_peka.training.targets import N_VARIABLE
from napari_peka.trust.held_out import spread_at
from napari_peka.workflows import folds as part
from napari_peka.workflows.growing import doubt_of
from napari_peka.workflows.outcome import save_refit
from napari_peka.workflows.place import Workplace
from napari_peka.workflows.predict import of_model
from napari_peka.workflows.spots import embed_spots, genes_in_both, refuse_misplaced, seen_before, unit_of
from napari_peka.workflows.train import OWN, REPORT


def refit(
    model: Model,
    sections: Sequence[Section] | Section,
    config: RefitConfig | None = None,
    *,
    output: Path | str,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress = NULL,
) -> Model:
    """Fit a model's gene head anew on measured spots, judge it on spots that it did not see, and write the new model.

    The encoder runs once over the spots; what it saw is kept, so that another refit takes seconds. With ``start =
    "model"`` the new head is the old one and a correction: each gene's level is set right, and of what is learnt beyond
    that so much is taken over as proves right on parts of the training spots that were left out of it. So few spots
    change little. Genes that the model did not know are learnt from these spots alone.

    Parameters
    ----------
    model
        From :func:`load_model` or :func:`train`.
    sections
        From :func:`read_section` or :func:`read_sections`; one is enough.
    config
        Settings; see :class:`RefitConfig`.
    output
        Folder of the new bundle; the report is its ``report/``, with the model as it was as the baseline ``before``.
    overwrite
        Replace a bundle at `output`.
    cache
        Folder of what is kept to save time; None: the user's cache.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Returns
    -------
    Model
        It embeds tiles as `model` does: :func:`with_model` shows a stored map through it at once.

    Raises
    ------
    SectionError, SettingError
        If sections or settings cannot be used.
    TrainingError
        If there is too little to learn from.
    OutputMismatch, StoreError
        If the output cannot be written, or belongs to something else.
    """
    sections, config = as_sections(sections), config or RefitConfig()
    settings = _as_training(model, config)
    refuse_misplaced(sections, config.min_on_tissue)
    # seconds of work are not kept: what an interrupted refit left is begun anew, what a training left is not touched
    with Workplace(Path(output), {"job": "refit"}, resume=not overwrite, overwrite=overwrite, own=OWN) as place:
        paired = gather(
            sections, model.tile_spec(), min_counts=config.min_counts, cache=kept_in(TILES, cache), progress=progress
        )
        how = PredictConfig(device=config.device, precision=config.precision, batch_size=config.batch_size)
        own = embed_spots(model, paired, how, cache=cache, progress=progress)
        split = part.plan_split(paired, config.hold_out)
        goal = part.set_goal(paired, split, settings, progress=progress)
        walk = _Refit(model, paired, split, goal, own, config, settings, progress)
        report = walk.report(Path(output).name)
        train = np.ones(len(paired), bool) if split.on_all else split.folds[0].train
        final = walk.fit(train, progress)
        built = place.folder / "bundle"
        files.remove_tree(built)
        hvg50 = walk.judged_by(train)
        save_refit(
            built, Path(output).name, model, final, own, train, report, paired, goal, hvg50, walk.record(), config
        )
        progress.stage("writing the report")
        report.write(built / REPORT)
        place.finish(built)
    return read_bundle(place.path)


def with_model(prediction: Prediction, model: Model) -> Prediction:
    """Return a map as another model's head reads it: same embeddings, other values, no inference.

    Parameters
    ----------
    prediction
        From :func:`predict` or :func:`read_prediction`.
    model
        A model that sees in a tile what the map's own does, such as one from :func:`refit`.

    Returns
    -------
    Prediction
        In memory; `prediction` stays as it is.

    Raises
    ------
    OutputMismatch
        If the model embeds tiles otherwise.
    """
    made_by = prediction.record.get("model", {})
    if made_by.get("embedding_digest") != model.embedding_digest:
        raise OutputMismatch(
            f"the map was made by {made_by.get('name', 'another model')}, which sees other things in a tile than "
            f"{model.name}: predict the slide with {model.name}"
        )
    record = prediction.record | of_model(model)
    record["identity"] = record.get("identity", {}) | {"model": model.digest}
    ood, spread = doubt_of(prediction, model)
    return dataclasses.replace(
        prediction, head=model.head, record=record, path=None, intervals=model.intervals, model_intervals=None,
        ood=ood, spread=spread,
    )  # fmt: skip


class _Refit:
    """The steps that all parts share."""

    def __init__(
        self, model: Model, paired: Paired, split: part.Split, goal: part.Goal, own: npt.NDArray[np.float32],
        config: RefitConfig, settings: TrainConfig, progress: Progress,
    ) -> None:  # fmt: skip
        self.model, self.paired, self.split, self.goal = model, paired, split, goal
        self.config, self.settings, self.progress, self.own = config, settings, progress, own
        self.features = part.with_context(own, paired, model.head.context_um)
        self.weights, self.bias, self.known = _in_order(model, paired, goal)

    @property
    def before(self) -> npt.NDArray[np.float32]:
        """What the model says of every spot, ``(n, g)``; NaN for genes that it does not know."""
        said = self.features @ self.weights + self.bias
        return np.where(self.known, said, np.nan).astype(np.float32)

    def fit(self, train: npt.NDArray[np.bool_], progress: Progress = NULL) -> FittedHead:
        """Fit the head on a part of the spots."""
        self.progress.advance()
        if self.config.start == "nothing":
            return self._ridge(self.goal, train, progress)
        wrong = np.asarray(self.goal.y - np.nan_to_num(self.before), np.float32)
        goal = dataclasses.replace(self.goal, y=wrong)
        head = self._ridge(goal, train, progress)
        level = self._level(wrong, train)
        share = np.where(self.known, self._share(goal, train), 1.0).astype(np.float32)
        return dataclasses.replace(
            head,
            weights=self.weights + share * head.weights,
            bias=self.bias + level + share * (head.bias - level),
            record=head.record | {"start": self.model.digest, "share_of_correction": float(share[self.known].max())},
        )

    def _ridge(self, goal: part.Goal, train: npt.NDArray[np.bool_], progress: Progress = NULL) -> FittedHead:
        head = part.read_out(self.features, goal, self.paired, train, self.settings, progress=progress)
        assert isinstance(head, FittedHead)
        return head

    def _level(self, wrong: npt.NDArray[np.float32], train: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        weights = depth_weights(self.paired.totals[train], self.config.depth_power)
        return np.average(wrong[train], axis=0, weights=weights).astype(np.float32)

    def _share(self, goal: part.Goal, train: npt.NDArray[np.bool_]) -> float:
        """Return how much of a correction proves right where it was not learnt, 0 to 1, over the variable genes.

        Each block of the training spots is left out in turn; the least squares of what was wrong there on the
        correction of the others is the weight that stacking gives it (Wolpert, Neural Networks 1992).
        """
        rows = np.flatnonzero(train)
        judged = [k for k in self.goal.variable(self.paired, train).tolist() if self.known[k]][:N_VARIABLE]
        try:
            blocks = splits.by_block(list(self.paired.section[rows]), self.paired.centre_um[rows], part.N_BLOCKS)
        except SettingError:  # too few spots to leave any out: then only the level is believed
            return 0.0
        hit = norm = 0.0
        for block in blocks:
            fitted, left = (np.isin(np.arange(len(train)), rows[r]) for r in (block.train, block.test))
            level = self._level(goal.y, fitted)[judged]
            correction = self._ridge(goal, fitted)(self.features[left])[:, judged] - level
            wrong = goal.y[left][:, judged] - level
            hit, norm = hit + float((correction * wrong).sum()), norm + float((correction**2).sum())
        return float(np.clip(hit / norm, 0, 1)) if norm > 0 else 0.0

    def judged_by(self, train: npt.NDArray[np.bool_]) -> list[str]:
        """Return the genes by which both heads are judged: the model's own where they were measured here."""
        genes = set(self.goal.genes)
        own = [g for g in self.model.hvg50 if g in genes]
        return own if len(own) >= N_VARIABLE // 2 else self.goal.hvg50(self.paired, train)

    def report(self, name: str) -> EvaluationReport:
        """Judge a head for each fold by what was held out of it."""
        ceilings = part.Ceilings(self.paired, self.goal, self.settings.unit, seed=self.config.seed)
        measured, hvg50, before = [], {}, self.before
        self.progress.stage("refitting the gene head", len(self.split.folds) + 1)
        for fold in self.split.folds:
            predicted = self.fit(fold.train)(self.features)
            baselines = part.baselines_of(self.goal, fold.train)
            hvg50[fold.name] = self.judged_by(fold.train)
            spread = spread_at(self.own, fold.train, self.paired.section)
            for m in part.measure(
                predicted, self.goal, self.paired, fold, self.config.seed, baselines, ceilings, spread
            ):
                rows = np.flatnonzero(fold.test & (self.paired.section == m.section_id))
                measured.append(dataclasses.replace(m, baselines=m.baselines | {BEFORE: before[rows]}))
        warnings, split = self.paired.all_warnings, f"{self.model.name}, its head refitted: {self.split.words}"
        if seen := seen_before(self.model, self.paired):
            split = f"{TRAINED_ON}: the model has seen {', '.join(seen)} before; {split}"
            warnings.append(
                f"{self.model.name} was trained on {', '.join(seen)} before: what is held out here was not unseen, and "
                "all figures are flattered"
            )
        return evaluate(
            measured, self.goal.genes, self.settings.unit, hvg50=hvg50, model=name,
            split=split, intervals=part.crossed(measured, self.settings.unit), warnings=warnings,
            provenance=self.record(), neighbour_smoothing=self.config.smooth_um is not None,
            optimistic=self.split.folds[0].optimistic, seed=self.config.seed,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """Return what made the model, fit for JSON."""
        before = {"name": self.model.name, "digest": self.model.digest}
        return part.made_of(self.paired, self.split, self.config) | {"refitted_from": before}


def _as_training(model: Model, config: RefitConfig) -> TrainConfig:
    """Return the settings by which a head is fitted in training, with what the model decides."""
    chosen = {name: getattr(config, name) for name in HeadConfig.model_fields}
    return TrainConfig(
        **chosen, encoder=model.card.name, adapter="none", unit=unit_of(model), context_um=model.head.context_um
    )


def _in_order(
    model: Model, paired: Paired, goal: part.Goal
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the model's weights and bias for the goal's genes, zeros where it knows none, and which it knows."""
    in_model, in_counts, _ = genes_in_both(model, paired)
    column = dict(zip(in_counts.tolist(), in_model.tolist()))
    at = np.array([column.get(c, -1) for c in goal.columns.tolist()])
    known = at >= 0
    weights = np.where(known, model.head.weights[:, at], 0).astype(np.float32)
    return weights, np.where(known, model.head.bias[at], 0).astype(np.float32), known
