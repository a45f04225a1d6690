"""A model's worth on measured sections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from napari_peka.config import EvaluateConfig, PredictConfig, Unit
from napari_peka.core.errors import SectionError, SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.section import Section
from napari_peka.models.bundle import Model
from napari_peka.training.baselines import PLACE_NAMES, LinearMap, colour_features, place_features, predict_baselines
from napari_peka.training.evaluate import EvaluationReport
from napari_peka.training.evaluate import evaluate as score
from napari_peka.training.paired import Paired, gather
from napari_peka.training.panel import GeneNames
from napari_peka.training.scoring import Measured
from napari_peka.training.targets import N_VARIABLE, expression, most_variable
from napari_peka.workflows.folds import ceiling, provenance

#: fold of sections that no fold was made of
GIVEN = "as given"


def evaluate(
    model: Model,
    sections: Sequence[Section],
    config: EvaluateConfig | None = None,
    *,
    output: Path | str | None = None,
    cache: Path | None = None,
    progress: Progress = NULL,
) -> EvaluationReport:
    """Score a model on sections as they are given; nothing is fitted.

    Parameters
    ----------
    model
        From :func:`load_model` or :func:`train`.
    sections
        From :func:`read_sections`. A section that the model was trained on is scored too, and the report says loudly
        that its figures are worth nothing.
    config
        Settings; see :class:`EvaluateConfig`.
    output
        Folder for ``report.json``, ``genes.csv`` and ``report.html``; None: nothing is written.
    cache
        Folder to keep cut tiles in; None: in memory.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Raises
    ------
    SectionError
        If the sections have none of the model's genes.
    """
    config = config or EvaluateConfig()
    unit = model.head.unit
    if unit not in get_args(Unit):
        raise SettingError(
            f"the model {model.name} predicts {unit!r}, which cannot be made from counts here; there are "
            + ", ".join(get_args(Unit))
        )
    paired = gather(sections, model.tile_spec(), cache=cache, progress=progress)
    in_model, in_counts, genes = _in_both(model, paired)
    warnings = paired.all_warnings
    if lost := len(model.head.genes) - len(genes):
        warnings.append(f"{lost} of the model's {len(model.head.genes)} genes were not measured in every section")
    y = expression(paired.counts[:, in_counts], paired.totals, unit)
    predicted = _predict(model, paired, config, progress)[:, in_model]
    colour = np.concatenate([colour_features(t) for _, t in paired.bank.batches(np.arange(len(paired)), 256)])
    place = place_features(paired.centre_um, list(paired.section))
    maps = {
        name: LinearMap(w[:, in_model], b[in_model])
        for name, (w, b) in model.baselines.items()
        if name in ("train_mean", "colour", "position") and len(w) in (0, colour.shape[1], len(PLACE_NAMES))
    }
    progress.stage("measuring the noise ceiling", len(paired.sections))
    measured = []
    for s in paired.sections:
        rows = np.flatnonzero(paired.section == s.section_id)
        most = ceiling(paired, rows, in_counts, unit, repeats=config.ceiling_repeats, seed=config.seed)
        measured.append(
            Measured(
                section_id=s.section_id, patient_id=s.patient_id, fold=GIVEN, seed=config.seed,
                spot_ids=tuple(paired.spot_ids[i] for i in rows), centre_um=paired.centre_um[rows], truth=y[rows],
                predicted=predicted[rows], attainable=most,
                baselines=predict_baselines(maps, colour[rows], place[rows]),
            )
        )  # fmt: skip
        progress.advance()
    hvg50 = [g for g in model.hvg50 if g in set(genes)]
    if not hvg50:
        hvg50 = [genes[i] for i in most_variable(y, paired.counts[:, in_counts], N_VARIABLE)]
        warnings.append(
            "the model does not say which genes vary most in its training: those of these sections are used"
        )
    split, seen = _relation(model, paired)
    report = score(
        measured, genes, unit, hvg50=hvg50, model=model.name, split=split, half_width_90=model.residual_q90[in_model],
        warnings=[*seen, *warnings], neighbour_smoothing=False, optimistic=False, seed=config.seed,
        provenance={
            "model": {"name": model.name, "digest": model.digest, "pcc_split": model.spec.head.pcc_split},
            "sections": provenance(paired),
            "settings": json.loads(config.model_dump_json()),
            "versions": _versions(),
        },
    )  # fmt: skip
    if output is not None:
        progress.stage("writing the report")
        report.write(Path(output).expanduser())
    return report


def _predict(model: Model, paired: Paired, config: EvaluateConfig, progress: Progress) -> npt.NDArray[np.float32]:
    """Return what the model says of every spot and gene, as it would on a slide."""
    from napari_peka.workflows.predict import load_forward

    forward = load_forward(
        model, PredictConfig(device=config.device, precision=config.precision, batch_size=config.batch_size)
    )
    progress.stage("loading the model")
    _ = forward.module
    progress.stage("predicting spots", len(paired))
    done = []
    for part, tiles in paired.bank.batches(np.arange(len(paired)), forward.batch_size):
        done.append(forward(tiles))
        progress.advance(len(part))
    near = paired.neighbours(model.head.context_um) if model.head.context_um is not None else None
    return model.head.matrix(np.concatenate(done), neighbours=near)


def _in_both(model: Model, paired: Paired) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], tuple[str, ...]]:
    """Return the genes that both have: columns of the model, columns of the counts, and the model's names."""
    names = GeneNames("the sections", paired.genes, paired.gene_ids)
    at = names.find(model.head.genes, model.head.gene_ids or model.head.genes)
    in_model = np.flatnonzero(at >= 0)
    if not len(in_model):
        raise SectionError(
            f"the sections have none of the genes that {model.name} predicts (such as {model.head.genes[0]}; they have "
            f"{paired.genes[0]}); is it the same species, and are genes named by symbol or Ensembl id?"
        )
    return in_model, at[in_model], tuple(model.head.genes[k] for k in in_model)


def _relation(model: Model, paired: Paired) -> tuple[str, list[str]]:
    """Return in words how the model's training data relate to these sections, and what must be said loudly."""
    trained = [t for t in model.trained_on if t.get("part", "train") == "train"]
    known = {v for t in trained for v in (t.get("fingerprint"), t.get("slide")) if v}
    patients = {str(t.get("patient")) for t in trained}
    seen = [s.section_id for s in paired.sections if {s.fingerprint, s.slide.fingerprint} & known]
    if seen:
        names = ", ".join(seen)
        return (
            f"TRAINED ON: the model has seen {names}; these figures say nothing of how well it predicts",
            [f"the model was trained on {names}: its scores there are worth nothing, leave them out"],
        )
    if not trained:
        return "the model does not say what it was trained on", ["the model does not say what it was trained on"]
    same = sorted({s.patient_id for s in paired.sections} & patients)
    if same:
        return f"other sections of patients that it was trained on ({', '.join(same)})", []
    unnamed = [str(t.get("name")) for t in trained if t.get("patient") == t.get("name")]
    unnamed += [s.section_id for s in paired.sections if s.patient_id == s.section_id]
    if unnamed:
        names = ", ".join(dict.fromkeys(unnamed))
        return (
            f"sections that the model never saw; whether it knows their patients is not known (nobody named {names}'s)",
            ["these may be patients that the model was trained on, which would flatter it: name the patients"],
        )
    return "sections and patients that the model never saw", []


def _versions() -> dict[str, str]:
    from napari_peka.workflows.predict import versions

    return versions()
