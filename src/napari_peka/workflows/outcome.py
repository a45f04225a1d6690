"""What a training gave, and how it becomes a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import RefitConfig, TrainConfig
from napari_peka.core.head import MEASURED
from napari_peka.models.bundle import PROBABILITIES, QUANTILES, RESIDUAL_Q90, Model, save_bundle
from napari_peka.models.reference import IMAGE, image_reference_of, reference_of
from napari_peka.models.registry import EncoderCard
from napari_peka.models.spec import BundleSpec, HeadRef
from napari_peka.training.baselines import PLACE_NAMES
from napari_peka.training.evaluate import EvaluationReport
from napari_peka.training.paired import Paired
from napari_peka.workflows.folds import Goal, baselines_of, supported
from napari_peka.workflows.slide_check import pixel_reference

if TYPE_CHECKING:
    from napari_peka.training.gene_head import FittedHead
    from napari_peka.training.learn import Learnt
    from napari_peka.training.mlp_head import MlpHead

#: a tile's numbers must become so many times fewer for a narrow layer to be worth a refit that needs the slide again
WORTH_IT = 4
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(eq=False)
class Outcome:
    """A trained student and its gene head.

    Parameters
    ----------
    learnt
        The adapted encoder.
    head
        The gene head.
    features
        What it reads, of all spots, float32 ``(n, d)``.
    train
        The spots that were trained on, bool ``(n,)``.
    """

    learnt: Learnt
    head: FittedHead | MlpHead
    features: npt.NDArray[np.float32]
    train: npt.NDArray[np.bool_]


def save_outcome(
    folder: Path, name: str, outcome: Outcome, report: EvaluationReport, paired: Paired, goal: Goal,
    config: TrainConfig, record: dict[str, Any],
) -> Model:  # fmt: skip
    """Write the bundle.

    Parameters
    ----------
    folder, name
        Where, and what it is called.
    outcome
        The model that is kept.
    report
        How it, or its like on other folds, did on what was held out.
    paired, goal, config
        On what it was trained.
    record
        Provenance, fit for JSON.
    """
    learnt, card = outcome.learnt, outcome.learnt.card
    head, layers, embedding, features = _read_out(outcome, config)
    tensors: Tensors = _of_head(head, report, embedding, outcome.train, paired, goal)
    if features != config.features:  # narrowed to what genes need, which no longer tells what is unlike
        seen = _own(outcome, config)[outcome.train]
        tensors |= image_reference_of(seen, paired.section[outcome.train])
    tensors |= {f"adapter.{k}": v.numpy() for k, v in learnt.adapter.items()}
    for i, (weight, bias) in enumerate(layers):
        tensors |= {f"translate.{i}.weight": weight, f"translate.{i}.bias": bias}
    spec = BundleSpec(
        schema=1,
        name=name,
        description=_description(learnt, paired, outcome.train, config),
        licence=f"encoder: {card.licence}",
        encoder={"name": card.name, "sha256": _weights_sha256(card), "revision": card.revision},
        preprocessing={
            "tile_px": card.px, "mpp": card.mpp, "mean": card.mean, "std": card.std, "rotations": config.rotations,
            "views": config.views, "blocks": config.blocks, "pooling": config.pooling,
        },
        adapter={
            "kind": learnt.spec.kind, "rank": learnt.spec.rank, "target": learnt.spec.target or "",
            "options": learnt.spec.options,
        },
        translate=[layers[0][0].shape[1], *(len(weight) for weight, _ in layers)] if layers else [],
        head=_head_ref(head, features, config.context_um, report, goal, goal.hvg50(paired, outcome.train)),
        training={
            **_tissue(config.organ), **record, "summary": report.summary,
            "learnt": learnt.record | {"head": outcome.head.record},
        },
    )  # fmt: skip
    return save_bundle(folder, spec, tensors)


def save_refit(
    folder: Path, name: str, model: Model, head: FittedHead, embedding: npt.NDArray[np.float32],
    train: npt.NDArray[np.bool_], report: EvaluationReport, paired: Paired, goal: Goal, hvg50: list[str],
    record: dict[str, Any], config: RefitConfig,
) -> Model:  # fmt: skip
    """Write a bundle that sees what another sees, with a head of its own.

    Parameters
    ----------
    folder, name
        Where, and what it is called.
    model
        Whose encoder, adapter and translation are kept.
    head
        Reads what the model's head reads.
    embedding
        Each spot's own, float32 ``(n, d)``.
    train
        The spots that the head was fitted on, bool ``(n,)``.
    report
        How such heads did on what was held out.
    paired, goal
        On what it was fitted.
    hvg50
        The genes by which it is judged.
    record
        Provenance, fit for JSON.
    config
        Settings; ``organ`` counts.
    """
    old = model.spec
    n = len(paired.sections)
    share = head.record.get("share_of_correction")
    kept = "from nothing" if share is None else f"levels, and {share:.0%} of what these spots say beyond"
    how = f"Its gene head was refitted on {n} section{'s' * (n > 1)} of {paired.whose()} ({kept})."
    spec = BundleSpec(
        schema=1,
        name=name,
        description=f"{old.description} {how}".strip(),
        licence=old.licence,
        encoder=old.encoder,
        preprocessing=old.preprocessing,
        adapter=old.adapter,
        translate=old.translate,
        translate_activation=old.translate_activation,
        head=_head_ref(head, old.head.features, old.head.context_um, report, goal, hvg50),
        training={
            **_tissue(old.tissue, config.organ), **record, "sections": [*model.trained_on, *record["sections"]],
            "summary": report.summary, "learnt": {"head": head.record},
        },
    )  # fmt: skip
    image = {k: v for k, v in model.carried.items() if k.startswith(IMAGE)}  # the encoder sees what it saw
    return save_bundle(folder, spec, model.tensors | image | _of_head(head, report, embedding, train, paired, goal))


def _tissue(*organs: str | None) -> dict[str, str]:
    """Return what ``training`` says of the organs, each named once; nothing where nobody said."""
    said = [o.strip() for organ in organs for o in (organ or "").split(",") if o.strip()]
    names = {o.casefold(): o for o in reversed(said)}
    return {"tissue": ", ".join(reversed(names.values()))} if names else {}


def _of_head(
    head: FittedHead, report: EvaluationReport, embedding: npt.NDArray[np.float32], train: npt.NDArray[np.bool_],
    paired: Paired, goal: Goal,
) -> Tensors:  # fmt: skip
    """Return a head's weights and what its values are judged and calibrated by."""
    tensors: Tensors = {"head.weights": head.weights, "head.bias": head.bias, RESIDUAL_Q90: _residual_q90(report)}
    if (intervals := supported(report.measured, report.unit)) is not None:
        tensors |= {PROBABILITIES: intervals.probabilities.astype(np.float32), QUANTILES: intervals.quantiles}
    tensors |= reference_of(embedding[train], paired.section[train]) | pixel_reference(paired, goal, train)
    for key, linear in baselines_of(goal, train).items():
        if len(linear.weights) <= len(PLACE_NAMES):  # a function of one section's places says nothing of another
            tensors |= {f"baseline.{key}.weights": linear.weights, f"baseline.{key}.bias": linear.bias}
    return tensors


def _head_ref(
    head: FittedHead, features: Any, context_um: float | None, report: EvaluationReport, goal: Goal, hvg50: list[str],
) -> HeadRef:  # fmt: skip
    return HeadRef(
        features=features, n_dims=len(head.weights), context_um=context_um, genes=list(goal.genes),
        gene_ids=list(goal.gene_ids), unit=report.unit, pcc_split=report.split, hvg50=hvg50,
        neighbour_smoothing=report.neighbour_smoothing, **{name: _rounded(report.genes[name]) for name in MEASURED},
    )  # fmt: skip


def _read_out(
    outcome: Outcome, config: TrainConfig
) -> tuple[FittedHead, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], npt.NDArray[np.float32], str]:
    """Return the linear head, the layers before it, each tile's own embedding, and what a bundle calls that."""
    from napari_peka.training.gene_head import narrowed
    from napari_peka.training.mlp_head import MlpHead

    if isinstance(outcome.head, MlpHead):
        return outcome.head.head, list(outcome.head.layers), outcome.head.translate(outcome.features), "peka"
    layers = []
    if config.features != "image" and outcome.learnt.translate is not None:
        layers = [
            (m.weight.detach().numpy(), m.bias.detach().numpy())
            for m in outcome.learnt.translate
            if hasattr(m, "weight")
        ]
    parts = 1 if config.context_um is None else 2
    own = _own(outcome, config)
    width = own.shape[1]
    if config.compress and config.target_rank and config.features == "image":
        rank = min(config.target_rank, outcome.head.weights.shape[1])
        if parts * rank * WORTH_IT <= width:
            weight, bias, head = narrowed(outcome.head, own[outcome.train], rank, parts)
            return head, [(weight, bias)], own @ weight.T, "peka"
    return outcome.head, layers, own, config.features


def _own(outcome: Outcome, config: TrainConfig) -> npt.NDArray[np.float32]:
    """Return each spot's own features, without those of its neighbours."""
    return outcome.features if config.context_um is None else outcome.features[:, : outcome.features.shape[1] // 2]


def _description(learnt: Learnt, paired: Paired, train: npt.NDArray[np.bool_], config: TrainConfig) -> str:
    how = "frozen" if learnt.spec.kind == "none" else f"adapted ({learnt.spec.kind}, teacher {config.teacher})"
    n = len(np.unique(paired.section[train]))
    return f"{learnt.card.name} {how}, trained on {n} section{'s' * (n > 1)} of {paired.whose(train)}."


def _residual_q90(report: EvaluationReport) -> npt.NDArray[np.float32]:
    """Return the 90 % quantile of the held-out absolute residuals of each gene; NaN where none is known."""
    residuals = np.concatenate([np.abs(m.truth - m.predicted) for m in report.measured])
    return np.asarray(np.nanquantile(residuals, 0.9, axis=0), np.float32)


def embedding_of(outcome: Outcome, config: TrainConfig) -> npt.NDArray[np.float32]:
    """Return each spot's own embedding as a bundle of this outcome computes it, ``(n, d)``."""
    return _read_out(outcome, config)[2]


def _rounded(values: Any) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def _weights_sha256(card: EncoderCard) -> str | None:
    if card.sha256:
        return card.sha256
    if card.hub_id is None and card.weights_file is None:
        return None
    from napari_peka.models.weights import file_sha256, find_weights

    return file_sha256(find_weights(card, offline=True))
