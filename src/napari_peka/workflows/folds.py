"""One training part at a time: learn, read out, predict what was left out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import HeadConfig, TrainConfig
from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.core.units import least_value
from napari_peka.io.prediction import RESEARCH_USE
from napari_peka.training import splits
from napari_peka.training.baselines import LinearMap, colour_features, fit_baselines, place_features, predict_baselines
from napari_peka.training.ceiling import attainable_pcc
from napari_peka.training.denoise import denoised, depth_weights
from napari_peka.training.paired import Paired
from napari_peka.training.scoring import Measured
from napari_peka.training.targets import N_VARIABLE, choose_genes, expression, most_variable, smooth_neighbours
from napari_peka.trust.held_out import intervals_of, without_each

if TYPE_CHECKING:
    import torch

    from napari_peka.training.gene_head import FittedHead
    from napari_peka.training.learn import Learnt
    from napari_peka.training.mlp_head import MlpHead

Float32 = npt.NDArray[np.float32]
#: blocks a section for hold_out = block: a fifth of each section at a time
N_BLOCKS = 5


@dataclass(frozen=True, eq=False)
class Goal:
    """What is to be predicted of every spot.

    Parameters
    ----------
    columns
        Columns of ``paired.counts``, ``(g,)``.
    genes, gene_ids
        Their names.
    y
        Expression in the unit, float32 ``(n, g)``.
    colour, place
        What the baselines read, ``(n, c)`` and ``(n, p)``.
    """

    columns: npt.NDArray[np.intp]
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    y: Float32
    colour: Float32
    place: Float32

    def variable(self, paired: Paired, train: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Return the genes by their variance over the training spots, greatest first; rarely seen ones come last."""
        return most_variable(self.y[train], paired.counts[train][:, self.columns])

    def hvg50(self, paired: Paired, train: npt.NDArray[np.bool_]) -> list[str]:
        """Return the genes by which a model of these training spots is scored."""
        at = most_variable(self.y[train], paired.counts[train][:, self.columns], N_VARIABLE)
        return [self.genes[i] for i in at]


@dataclass(frozen=True, eq=False)
class Split:
    """How spots are divided.

    Parameters
    ----------
    kind
        ``"section"``, ``"patient"``, ``"block"``, ``"named"`` or ``"paper"``.
    folds
        One entry a training part.
    on_all
        Whether the model that is kept is trained on all spots, after the folds have judged it.
    words
        In a phrase, on what the held-out figures were measured.
    """

    kind: str
    folds: list[splits.Fold]
    on_all: bool
    words: str


def plan_split(paired: Paired, hold_out: str | None) -> Split:
    """Divide spots into training and held-out parts.

    Parameters
    ----------
    paired
        All spots.
    hold_out
        ``"section"``, ``"patient"`` or ``"block"``: each is left out in turn to judge, and the model is then trained on
        all of them. Names of sections or patients, separated by commas: they are left out for good. None: the sections
        that a manifest calls ``test``, or else each section in turn, or blocks where there is one.
    """
    section, patient = list(paired.section), list(paired.patient)
    n = len(paired.sections)
    of = f"{n} section{'s' * (n > 1)} of {paired.whose()}"
    if hold_out is None:
        tests = [s.section_id for s in paired.sections if s.split.casefold() == "test"]
        hold_out = ", ".join(tests) or ("section" if n > 1 else "block")
    turn = "left out in turn to judge; then trained on all"
    if hold_out == "section":
        return Split("section", splits.by_section(section), True, f"{of}, each section {turn}")
    if hold_out == "patient":
        if unnamed := paired.unnamed:
            raise SettingError(
                f"nobody says whose {', '.join(unnamed[:5])} {'are' if unnamed[1:] else 'is'}, so no patient can be "
                "left out: name them in a manifest's column patient, or with --patient or patient="
            )
        return Split("patient", splits.by_patient(patient), True, f"{of}, each patient {turn}")
    if hold_out == "block":
        folds = splits.by_block(section, paired.centre_um, N_BLOCKS)
        within = "scored within the block, which is harder than over a whole section"
        return Split("block", folds, True, f"{of}, a block of each section left out in turn to judge ({within}); then "
                     "trained on all")  # fmt: skip
    names = [name for name in map(str.strip, hold_out.split(",")) if name]
    if not names:
        raise SettingError("hold_out must be section, patient, block, or names of sections or patients")
    fold = splits.named(names, section, patient)
    return Split("named", [fold], False, f"{of}, {fold.name} left out")


def paper_split(paired: Paired, seed: int) -> Split:
    """Divide spots at random, as the paper does: optimistic."""
    words = f"{len(paired.sections)} sections, spots at random (optimistic)"
    return Split("paper", splits.paper(len(paired), seed), False, words)


def set_goal(paired: Paired, split: Split, config: TrainConfig, *, progress: Progress = NULL) -> Goal:
    """Choose the genes by the training parts, and lay out their expression and what baselines read."""
    parts = [f.train for f in split.folds] + ([np.ones(len(paired), bool)] if split.on_all else [])
    chosen = [
        choose_genes(
            paired.counts[part], paired.genes, paired.totals[part], paired.section[part], wanted=config.genes,
            min_detected=config.min_detected, n_top=config.n_top_genes, gene_ids=paired.gene_ids,
        )
        for part in parts
    ]  # fmt: skip
    columns = np.unique(np.concatenate(chosen))
    y = expression(paired.counts[:, columns], paired.totals, config.unit)
    if config.smooth_um is not None:
        y = smooth_neighbours(y, paired.neighbours(config.smooth_um))
        progress.note("expression is averaged over neighbouring spots: every score will be flattered")
    tiles = [colour_features(t) for _, t in paired.bank.batches(np.arange(len(paired)), 256)]
    within = split.kind in ("block", "paper")
    return Goal(
        columns, tuple(paired.genes[i] for i in columns),
        tuple(paired.gene_ids[i] for i in columns) if paired.gene_ids else (),
        y, np.concatenate(tiles), place_features(paired.centre_um, list(paired.section), within=within),
    )  # fmt: skip


def embed_all(
    learnt: Learnt, paired: Paired, config: TrainConfig, device: torch.device, dtype: torch.dtype,
    *, progress: Progress = NULL,
) -> Float32:  # fmt: skip
    """Return the features of every spot as the gene head will read them on a slide, float32 ``(n, d)``."""
    from napari_peka.infer.forward import Forward
    from napari_peka.models.student import Student

    student = Student(
        learnt.encoder, learnt.card.mean, learnt.card.std, learnt.translate, config.features,
        rotations=config.rotations, views=config.views,
    )  # fmt: skip
    forward = Forward(lambda: student, device, dtype, config.batch_size)
    rows = np.arange(len(paired))
    progress.stage("embedding spots", len(rows))
    done = []
    for part, tiles in paired.bank.batches(rows, config.batch_size):
        done.append(forward(tiles).astype(np.float32))
        progress.advance(len(part))
    student.cpu().float()
    return with_context(np.concatenate(done), paired, config.context_um)


def with_context(features: Float32, paired: Paired, radius_um: float | None) -> Float32:
    """Append the mean of the neighbours' features."""
    if radius_um is None:
        return features
    return np.concatenate([features, paired.neighbours(radius_um).mean(features)], 1).astype(np.float32)


def read_out(
    features: Float32, goal: Goal, paired: Paired, train: npt.NDArray[np.bool_], config: TrainConfig,
    *, progress: Progress = NULL,
) -> FittedHead | MlpHead:  # fmt: skip
    """Fit the gene head on the training spots."""
    from napari_peka.training.gene_head import fit_head

    alpha, groups = config.ridge_alpha, paired.section[train]
    variable = goal.variable(paired, train)
    y = goal.y[train]
    weights = depth_weights(paired.totals[train], config.depth_power)
    one = np.zeros(len(y), int)

    def less_noisy(rows: npt.NDArray[np.bool_]) -> Float32:
        return denoised(
            y[rows], groups[rows] if config.centre_sections else one[rows], weights=weights[rows],
            rank=config.target_rank, variable=variable,
        )  # fmt: skip

    if alpha == "groups" and len(set(groups)) < 2:
        alpha = "gcv"
        progress.note("one section trains: the head's penalty is chosen by generalised cross-validation")
    if config.head == "mlp":
        from napari_peka.training.mlp_head import fit_mlp_head

        learnt = less_noisy(np.ones(len(y), bool))
        return fit_mlp_head(features[train], learnt, seed=config.seed, progress=progress)
    head = fit_head(
        features[train], y, n_components=config.n_components, alpha=alpha,
        groups=groups if alpha == "groups" else None, sample_weight=weights if config.depth_power else None,
        judged_genes=variable[:N_VARIABLE], standardise=config.standardise,
        prepare=less_noisy if config.centre_sections or config.target_rank else None, progress=progress,
    )  # fmt: skip
    for text in head.warnings:
        progress.note(text)
    return head


def baselines_of(goal: Goal, train: npt.NDArray[np.bool_]) -> dict[str, LinearMap]:
    """Fit on the training spots what a model must beat."""
    return fit_baselines(goal.colour[train], goal.place[train], goal.y[train])


def measure(
    predicted: Float32, goal: Goal, paired: Paired, fold: splits.Fold, seed: int, baselines: dict[str, LinearMap],
    ceilings: Ceilings, spread: Float32 | None = None,
) -> list[Measured]:  # fmt: skip
    """Lay out the held-out spots of a fold, a part a section; `predicted` and `spread` are of all spots."""
    out = []
    for name in dict.fromkeys(paired.section[fold.test].tolist()):
        rows = np.flatnonzero(fold.test & (paired.section == name))
        out.append(
            Measured(
                section_id=name, patient_id=str(paired.patient[rows[0]]), fold=fold.name, seed=seed,
                spot_ids=tuple(paired.spot_ids[i] for i in rows), centre_um=paired.centre_um[rows],
                truth=goal.y[rows], predicted=predicted[rows], attainable=ceilings.of(rows),
                baselines=predict_baselines(baselines, goal.colour[rows], goal.place[rows]),
                spread=None if spread is None else spread[rows],
            )
        )  # fmt: skip
    return out


def crossed(measured: list[Measured], unit: str) -> dict[str, Intervals]:
    """Return for each held-out section the intervals that the others support; of other patients, see `_groups`."""
    made = without_each(*_held_out(measured), least_value(unit))
    return {m.section_id: made[group] for m, group in zip(measured, _groups(measured)) if group in made}


def supported(measured: Sequence[Measured], unit: str) -> Intervals | None:
    """Return the intervals that all held-out sections support together; None where they are too few."""
    return intervals_of(*_held_out(measured), least_value(unit))


def _held_out(measured: Sequence[Measured]) -> tuple[list[Float32], list[Float32 | None], list[str]]:
    """Return measured less predicted, spread and group of each part."""
    return [m.truth - m.predicted for m in measured], [m.spread for m in measured], _groups(measured)


def _groups(measured: Sequence[Measured]) -> list[str]:
    """Return what each part's spots are alike in, and others are not: the patient where whole patients were held out.

    Where they were not, it is the section: then nothing is known of another patient.
    """
    folds: dict[str, set[str]] = {}
    for m in measured:
        folds.setdefault(m.patient_id, set()).add(m.fold)
    whole = len(folds) > 1 and all(len(names) == 1 for names in folds.values())
    return [m.patient_id if whole else m.section_id for m in measured]


def ceiling(
    paired: Paired, rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer], unit: str, *, repeats: int,
    seed: int,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Return the attainable PCC of some genes over some spots of one section, ``(len(columns),)``."""
    k = next(i for i, s in enumerate(paired.sections) if s.section_id == paired.section[rows[0]])
    counts = paired.sections[k].counts[paired.rows[rows]]  # all genes: the totals of the halves need them
    return attainable_pcc(counts, unit, columns=paired.columns[k][columns], repeats=repeats, seed=seed)


class Ceilings:
    """Noise ceilings of the goal's genes over any spots, each computed once.

    Parameters
    ----------
    paired, goal
        Whose.
    unit
        Unit of expression.
    repeats, seed
        See :func:`napari_peka.training.ceiling.attainable_pcc`.
    """

    def __init__(self, paired: Paired, goal: Goal, unit: str, *, repeats: int = 10, seed: int = 0) -> None:
        self._paired, self._goal, self._unit, self._repeats, self._seed = paired, goal, unit, repeats, seed
        self._known: dict[bytes, npt.NDArray[np.float64]] = {}

    def of(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Return the attainable PCC of each gene over some spots of one section, ``(g,)``."""
        key = rows.tobytes()
        if key not in self._known:
            self._known[key] = ceiling(
                self._paired, rows, self._goal.columns, self._unit, repeats=self._repeats, seed=self._seed
            )
        return self._known[key]


def file_name(text: str) -> str:
    """Return a fold's name as a folder may be called."""
    return re.sub(r"[^\w.-]+", "_", text) or "_"


def provenance(paired: Paired) -> list[dict[str, Any]]:
    """Return which sections took part, fit for JSON."""
    return [
        {
            "name": s.section_id,
            "patient": s.patient_id,
            "patient_named": s.patient_named,
            "platform": s.platform,
            "fingerprint": s.fingerprint,
            "slide": s.slide.fingerprint,
            "spots": int((paired.section == s.section_id).sum()),
            "mpp": list(s.slide.mpp),
        }
        for s in paired.sections
    ]


def made_of(paired: Paired, split: Split, config: HeadConfig) -> dict[str, Any]:
    """Return what a model was made of, fit for JSON."""
    from napari_peka.workflows.predict import versions

    sections = provenance(paired)
    for s in sections:
        rows = paired.section == s["name"]
        s["part"] = "train" if split.on_all or split.folds[0].train[rows].any() else "held out"
    return {
        "sections": sections,
        "data_digest": hashlib.sha256(" ".join(s["fingerprint"] for s in sections).encode()).hexdigest(),
        "settings": json.loads(config.model_dump_json()),
        "seeds": [config.seed],
        "versions": versions(),
        "notice": RESEARCH_USE,
    }


def checkpoint_folder(folder: Path, name: str) -> Path:
    """Return where a training of that name keeps its checkpoint."""
    return folder / file_name(name)
