"""Sections → model → report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import HOW_TO_RUN, TrainConfig
from napari_peka.core import files
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.cache import TILES, kept_in
from napari_peka.io.section import Section, as_sections
from napari_peka.models.archive import TENSOR_FILE
from napari_peka.models.bundle import Model, read_bundle
from napari_peka.models.card import CARD_FILE
from napari_peka.models.spec import SPEC_FILE
from napari_peka.training.baselines import FROZEN
from napari_peka.training.evaluate import EvaluationReport, evaluate
from napari_peka.training.metrics import nan_mean
from napari_peka.training.paired import Paired, gather
from napari_peka.training.scoring import Measured
from napari_peka.training.splits import Fold
from napari_peka.training.targets import N_VARIABLE
from napari_peka.trust.held_out import spread_at
from napari_peka.workflows import folds as part
from napari_peka.workflows.outcome import Outcome, embedding_of, save_outcome
from napari_peka.workflows.place import Workplace
from napari_peka.workflows.spots import refuse_misplaced
from napari_peka.workflows.watch import N_SHOWN, Part, Watcher, glance

if TYPE_CHECKING:
    import torch

    from napari_peka.training.learner import History, Look, OnEpoch, OnLook, Watch

Float32 = npt.NDArray[np.float32]
REPORT, TENSORBOARD = "report", "tensorboard"
#: in a working folder: that a training was ended early, and after how many epochs
ENDED_FILE = "ended.json"
WHOLE = "all spots"
#: how a history says that somebody ended it
ASKED = "asked to stop"
#: what a bundle's folder holds
OWN = (SPEC_FILE, TENSOR_FILE, CARD_FILE, REPORT)


def train(
    sections: Sequence[Section] | Section,
    config: TrainConfig | None = None,
    *,
    output: Path | str,
    resume: bool = False,
    finish: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    on_epoch: OnEpoch | None = None,
    watcher: Watcher | None = None,
    against_frozen: bool = False,
    progress: Progress = NULL,
) -> Model:
    """Learn a model from paired sections, judge it on what it did not see, and write both.

    Parameters
    ----------
    sections
        From :func:`read_section` or :func:`read_sections`.
    config
        Settings; see :class:`TrainConfig`.
    output
        Folder of the bundle; the report is its ``report/``. Work goes on in ``<output>.partial`` until it is whole.
    resume
        Go on from there after an interruption; it ends with the same weights.
    finish
        With `resume`: end the interrupted training where it stands, with the best epoch so far.
    overwrite
        Replace a bundle at `output`, or begin anew where unfinished work is.
    cache
        Folder of what is kept to save time, such as cut tiles; None: the user's cache.
    on_epoch
        Called after each epoch; see :func:`napari_peka.training.distill.fit`. When it ends a training early, those
        that follow it take as many epochs.
    watcher
        Is shown what is predicted of the left-out spots after each epoch; costs a pass over them, and decides nothing.
    against_frozen
        Judge the encoder as it was before training as well, with the same read-out, among the report's baselines; costs
        one more pass over all spots.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Returns
    -------
    Model
        The bundle, as :func:`load_model` returns it.

    Raises
    ------
    SectionError, SettingError
        If sections or settings cannot be used.
    TrainingError
        If training diverges, or there is too little to learn from.
    OutputMismatch, StoreError
        If the output cannot be written, or belongs to something else.
    """
    from napari_peka.models.devices import choose_device, choose_precision
    from napari_peka.models.encoder import fetch_weights
    from napari_peka.training.learn import card_of, tile_spec

    sections, config = as_sections(sections), config or TrainConfig()
    check(config)
    refuse_misplaced(sections, config.min_on_tissue)
    if finish and not resume:
        raise SettingError("finish ends an interrupted training: it needs resume as well (--resume --finish)")
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    identity = {
        "settings": json.loads(config.model_dump_json(exclude=HOW_TO_RUN)),
        "precision": str(dtype).removeprefix("torch."),
        "sections": [s.fingerprint for s in sections],
    }
    with Workplace(Path(output), identity, resume=resume, overwrite=overwrite, own=OWN) as place:
        progress.stage("looking for the encoder's weights")
        fetch_weights(card_of(config))  # what cannot be had is said before any tile is cut
        paired = gather(
            sections, tile_spec(config), min_counts=config.min_counts, cache=kept_in(TILES, cache), progress=progress
        )
        split = part.plan_split(paired, config.hold_out)
        walk = _Walk(paired, split, config, place.folder, device, dtype, finish, on_epoch, progress)
        walk.watcher, walk.against_frozen = watcher, against_frozen and config.adapter != "none"
        held_out = [walk.fold(i) for i in range(len(split.folds))]
        final = walk.learn(WHOLE, np.ones(len(paired), bool)) if split.on_all else walk.last
        assert final is not None
        report = walk.report(held_out, Path(output).name)
        built = place.folder / "bundle"
        files.remove_tree(built)
        save_outcome(built, Path(output).name, final, report, paired, walk.goal, config, walk.record())
        progress.stage("writing the report")
        report.write(built / REPORT)
        _write_curves(walk.curves, place.folder, built / REPORT)
        place.finish(built)
    return read_bundle(place.path)


def check(config: TrainConfig) -> None:
    """Refuse settings that do not go together, before hours of work.

    Raises
    ------
    SettingError
        In one sentence.
    """
    from napari_peka.models.registry import encoder_card
    from napari_peka.training import losses
    from napari_peka.training.learn import rehearse
    from napari_peka.training.teacher import make_teacher

    encoder_card(config.encoder)
    losses.weights(config.alpha, config.terms)
    if config.adapter != "none":
        make_teacher(config)
    if config.features != "image" and config.adapter == "none":
        raise SettingError(
            f"features = {config.features} needs a trained translation, and adapter = none trains nothing; "
            "take features = image"
        )
    if config.head == "mlp" and (config.features != "image" or config.context_um is not None):
        raise SettingError("head = mlp reads features = image and no neighbours; leave context_um away, or take ridge")
    if config.features != "image" and config.views != [1.0]:
        raise SettingError("several views are read by features = image only: the translation is learnt at one width")
    if config.tensorboard and not find_spec("tensorboard"):
        raise SettingError("tensorboard = true needs a package that is not here: pip install napari-peka[tensorboard]")
    if config.last_blocks is not None and config.adapter == "full":
        raise SettingError("adapter = full trains all blocks: leave last_blocks away, or take another adapter")
    rehearse(config)


class _Walk:
    """The steps that all training parts share."""

    def __init__(
        self, paired: Paired, split: part.Split, config: TrainConfig, folder: Path, device: torch.device,
        dtype: torch.dtype, finish: bool, on_epoch: OnEpoch | None, progress: Progress,
    ) -> None:  # fmt: skip
        self.paired, self.split, self.folds, self.config, self.folder = paired, split, split.folds, config, folder
        self.device, self.dtype, self.finish, self.on_epoch, self.progress = device, dtype, finish, on_epoch, progress
        self.notes = paired.all_warnings
        self.goal = part.set_goal(paired, split, config, progress=progress)
        self.ceilings = part.Ceilings(paired, self.goal, config.unit, seed=config.seed)
        self.curves: list[dict[str, Any]] = []
        self.last: Outcome | None = None
        self.ended_after, self.begun = _ended(folder)
        self.watcher: Watcher | None = None
        self.against_frozen = False
        self._published: npt.NDArray[np.float32] | None = None
        self._frozen: npt.NDArray[np.float32] | None = None

    def learn(self, name: str, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_] | None = None) -> Outcome:
        """Train on a part, embed all spots, and fit the head."""
        from napari_peka.training.learn import learn

        variable = self.goal.variable(self.paired, train)
        config = self.config
        watch, on_look = self._watch(name, variable, test)
        # what was not begun is trained as long as what was ended, no longer; what was begun keeps its plan
        epochs = self.begun.setdefault(name, self.ended_after or config.epochs)
        config = config.model_copy(update={"epochs": epochs})
        if self.ended_after:
            self._note_end()
        learnt = learn(
            self.paired, train, config, self.goal.y, variable, self.goal.columns,
            folder=part.checkpoint_folder(self.folder, name), device=self.device, dtype=self.dtype,
            title=f" on {name}" if name == WHOLE else f" without {name}", resume=True,
            finish=self.finish, on_epoch=self._watched(name), watch=watch, on_look=on_look, progress=self.progress,
        )  # fmt: skip
        ended = self.finish or learnt.history.stopped.startswith(ASKED)
        if ended and 0 < len(learnt.history.epochs) < config.epochs:
            self.ended_after = len(learnt.history.epochs)
            self._note_end()
        features = self._frozen
        if features is None:
            features = part.embed_all(learnt, self.paired, self.config, self.device, self.dtype, progress=self.progress)
        if learnt.spec.kind == "none":  # all parts read the same encoder
            self._frozen = features
        head = part.read_out(features, self.goal, self.paired, train, self.config, progress=self.progress)
        self.curves += [
            {"fold": name, "seed": self.config.seed, **e.row, "kept": e.epoch == learnt.history.kept}
            for e in learnt.history.epochs
        ]
        return Outcome(learnt, head, features, train)

    def _watched(self, name: str) -> OnEpoch | None:
        """Return what is called after each epoch: the caller's, and TensorBoard's log where it is wanted."""
        if not self.config.tensorboard:
            return self.on_epoch
        from lightning_fabric.loggers import TensorBoardLogger

        logger = TensorBoardLogger(self.folder, name=TENSORBOARD, version=part.file_name(name))

        def watched(history: History, embeddings: npt.NDArray[np.float32]) -> bool | None:
            row = history.epochs[-1].row
            logger.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))
            logger.save()
            return self.on_epoch(history, embeddings) if self.on_epoch else None

        return watched

    def fold(self, number: int) -> list[Measured]:
        """Return the held-out spots of a fold; what a former run finished is read."""
        fold, kept = self.folds[number], self._kept(number)
        if kept is None or not self.split.on_all:
            final = self.learn(fold.name, fold.train, fold.test)
            predicted = final.head(final.features)
            spread = spread_at(embedding_of(final, self.config), fold.train, self.paired.section)
            self.last = final
            self._keep(number, predicted[fold.test], spread[fold.test])
        else:
            predicted = np.full(self.goal.y.shape, np.nan, np.float32)
            spread = np.ones(len(self.paired), np.float32)
            predicted[fold.test], spread[fold.test], curves = kept
            self.curves += curves
        baselines = part.baselines_of(self.goal, fold.train)
        measured = part.measure(
            predicted, self.goal, self.paired, fold, self.config.seed, baselines, self.ceilings, spread
        )
        return self._beside_frozen(measured, fold) if self.against_frozen else measured

    def _note_end(self) -> None:
        said = {"after": self.ended_after, "begun": self.begun}
        files.write_whole(self.folder / ENDED_FILE, json.dumps(said).encode())

    def _beside_frozen(self, measured: list[Measured], fold: Fold) -> list[Measured]:
        """Add what the encoder as it was says of the same spots, read out in the same way."""
        from napari_peka.training.learn import untrained

        config = self.config.model_copy(update={"adapter": "none", "features": "image"})
        if self._published is None:
            self._published = part.embed_all(
                untrained(config), self.paired, config, self.device, self.dtype, progress=self.progress
            )
        head = part.read_out(self._published, self.goal, self.paired, fold.train, config, progress=self.progress)
        out = []
        for m in measured:
            rows = np.flatnonzero(fold.test & (self.paired.section == m.section_id))
            out.append(dataclasses.replace(m, baselines=m.baselines | {FROZEN: head(self._published[rows])}))
        return out

    def _watch(
        self, name: str, variable: npt.NDArray[np.intp], test: npt.NDArray[np.bool_] | None
    ) -> tuple[Watch | None, OnLook | None]:
        """Return which spots are looked at while this part learns, and who is told."""
        from napari_peka.training.learner import Watch

        watcher = self.watcher
        if watcher is None:
            return None, None
        of = len(self.folds) + self.split.on_all
        number = of if test is None else [f.name for f in self.folds].index(name) + 1
        wished = [self.goal.genes.index(g) for g in watcher.genes if g in self.goal.genes]
        shown = np.array(list(dict.fromkeys([*variable[:N_SHOWN].tolist(), *wished])), np.intp)
        rows = None if test is None else np.flatnonzero(test)
        begun: list[Part] = []

        def tell(look: Look) -> None:
            if not begun:
                at = look.rows
                # known anyway once the held-out spots are scored
                known = [] if rows is None else [
                    self.ceilings.of(at[self.paired.section[at] == s])[shown]
                    for s in dict.fromkeys(self.paired.section[at].tolist())
                ]  # fmt: skip
                attainable = nan_mean(np.stack(known), 0) if known else np.full(len(shown), np.nan)
                begun.append(Part(
                    name, number, of, tuple(self.goal.genes[i] for i in shown), self.config.unit,
                    min(N_VARIABLE, len(variable)), self.paired.section[at], self.paired.centre_um[at],
                    self.goal.y[np.ix_(at, shown)].astype(np.float16), attainable.astype(np.float32),
                ))  # fmt: skip
                watcher.begins(begun[0])
            watcher.sees(glance(begun[0], look))

        return Watch(rows, np.ascontiguousarray(self.goal.y[:, shown])), tell

    def report(self, held_out: list[list[Measured]], name: str) -> EvaluationReport:
        """Score what was held out."""
        if self.ended_after:
            self.notes.append(f"training was ended after {self.ended_after} of {self.config.epochs} epochs")
        hvg50 = {f.name: self.goal.hvg50(self.paired, f.train) for f in self.folds}
        measured = [m for fold in held_out for m in fold]
        return evaluate(
            measured, self.goal.genes, self.config.unit, hvg50=hvg50, model=name,
            split=self.split.words, intervals=part.crossed(measured, self.config.unit), curves=self.curves,
            warnings=self.notes, provenance=self.record(), neighbour_smoothing=self.config.smooth_um is not None,
            optimistic=self.folds[0].optimistic, seed=self.config.seed,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """Return what made the model, fit for JSON."""
        ran = {"precision": str(self.dtype).removeprefix("torch."), "device": self.device.type}
        return part.made_of(self.paired, self.split, self.config) | ran

    def _kept(self, number: int) -> tuple[Float32, Float32, list[dict[str, Any]]] | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = part.checkpoint_folder(self.folder, self.folds[number].name)
        try:
            arrays = load((folder / "held_out.safetensors").read_bytes())
            predicted, spread = arrays["predicted"], arrays["spread"]
            curves = json.loads((folder / "curves.json").read_text("utf-8"))
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None
        return (predicted, spread, curves) if len(predicted) == len(spread) == self.folds[number].test.sum() else None

    def _keep(self, number: int, predicted: Float32, spread: Float32) -> None:
        from safetensors.numpy import save

        name = self.folds[number].name
        folder = files.make_folder(part.checkpoint_folder(self.folder, name))
        curves = [c for c in self.curves if c["fold"] == name]
        files.write_whole(folder / "curves.json", json.dumps(curves).encode())
        arrays = {"predicted": np.ascontiguousarray(predicted), "spread": spread}
        files.write_whole(folder / "held_out.safetensors", save(arrays))
        for cached in folder.glob("trunk-*.npy"):
            files.remove_tree(cached)


def _ended(folder: Path) -> tuple[int, dict[str, int]]:
    """Return after how many epochs a former run was ended early, 0 if it was not, and the epochs parts began with."""
    try:
        said = json.loads((folder / ENDED_FILE).read_text("utf-8"))
        return int(said["after"]), {str(k): int(v) for k, v in said["begun"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, {}


def _write_curves(curves: list[dict[str, Any]], folder: Path, report: Path) -> None:
    """Leave the learning curves beside the report, as a table and, where they were asked for, as TensorBoard's logs."""
    import pandas as pd

    if curves:
        files.write_whole(report / "curves.csv", pd.DataFrame(curves).to_csv(index=False).encode())
    if (folder / TENSORBOARD).is_dir():
        files.replace(folder / TENSORBOARD, report / TENSORBOARD)
