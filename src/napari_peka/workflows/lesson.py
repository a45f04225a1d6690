"""A training in a process of its own: what it needs, what it tells while it runs, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.config import TrainConfig
from napari_peka.core.child import RemoteProgress
from napari_peka.core.progress import Progress
from napari_peka.io.section import Section, read_section, rename
from napari_peka.workflows.folds import N_BLOCKS
from napari_peka.workflows.watch import Glance, Part

if TYPE_CHECKING:
    from napari_peka.training.learner import History

#: a measurement of a few steps is off by so much either way: caches warm up, other programs run
UNCERTAIN = 0.35
#: s that a process takes until it learns: libraries, weights, sections; and for the report
_START_S = 25.0
#: s of every training besides its steps: teacher, pseudo-labels, head
_EACH_S = 6.0
#: steps that are timed, after one that is not
_STEPS = 2


@dataclass(frozen=True)
class Asked:
    """A section by its path, to be read again elsewhere.

    Parameters
    ----------
    path
        Where it is.
    name, patient, split
        What it is called, whose it is and what it is for, whatever the files say; None: as they say.
    request
        Further arguments of :func:`napari_peka.read_section`.
    """

    path: Path
    name: str | None = None
    patient: str | None = None
    split: str = ""
    request: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Section:
        """Read it."""
        section = read_section(self.path, **self.request)
        if self.name is not None and section.section_id != self.name:
            rename(section, self.name)
        if self.patient is not None:
            section.patient_id, section.patient_named = self.patient, True
            section.warnings = [w for w in section.warnings if not w.startswith("nobody says whose")]
        section.split = self.split
        return section


@dataclass(frozen=True)
class Lesson:
    """All that a training needs; it can be pickled.

    Parameters
    ----------
    sections
        What to learn from.
    config, output, resume, overwrite
        See :func:`napari_peka.train`.
    genes
        Genes to show besides the most variable ones.
    """

    sections: tuple[Asked, ...]
    config: TrainConfig
    output: Path
    resume: bool = False
    overwrite: bool = False
    genes: tuple[str, ...] = ()


def give_lesson(lesson: Lesson, *, progress: RemoteProgress) -> str:
    """Train as a lesson says, and return the path of the bundle; for :func:`napari_peka.core.child.run_in_child`.

    It sends a :class:`Part` when a training begins and a :class:`Glance` after each epoch. When ``progress.end_asked``
    is set, the training in work ends after its epoch and keeps its best; those that follow take as many epochs.
    """
    from napari_peka.workflows.train import train

    def go_on(history: History, embeddings: Any) -> bool | None:
        if not progress.end_asked.is_set():
            return None
        progress.end_asked.clear()
        return False

    with ExitStack() as opened:
        progress.stage("reading sections", len(lesson.sections))
        sections = []
        for asked in lesson.sections:
            sections.append(opened.enter_context(asked.read()))
            progress.advance()
        model = train(
            sections, lesson.config, output=lesson.output, resume=lesson.resume, overwrite=lesson.overwrite,
            on_epoch=go_on, watcher=_Tells(progress, lesson.genes), against_frozen=True, progress=progress,
        )  # fmt: skip
        return str(model.source)


class _Tells:
    """A watcher that sends what it sees to another process."""

    def __init__(self, progress: RemoteProgress, genes: tuple[str, ...]) -> None:
        self.genes, self._progress = genes, progress

    def begins(self, part: Part) -> None:
        """See :class:`Watcher`."""
        self._progress.event(part)

    def sees(self, glance: Glance) -> None:
        """See :class:`Watcher`."""
        self._progress.event(glance)


# -- how long ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """How fast an encoder learns and sees here.

    Parameters
    ----------
    learn_s, look_s
        Seconds a tile to learn from it, and to embed it.
    """

    learn_s: float
    look_s: float


@dataclass(frozen=True)
class Extent:
    """How much there is to do.

    Parameters
    ----------
    trainings
        Numbers of spots that train and that are looked at after each epoch, for each training.
    spots
        All of them.
    """

    trainings: tuple[tuple[int, int], ...]
    spots: int


def measure_speed(config: TrainConfig, *, progress: Progress) -> Speed:
    """Time a few steps of the encoder with its adapter, with random weights and tiles: nothing is downloaded."""
    import torch

    from napari_peka.models import adapters
    from napari_peka.models.devices import choose_device, choose_precision
    from napari_peka.models.encoder import Normaliser, load_encoder
    from napari_peka.models.targets import resolve_adapter
    from napari_peka.training.learn import card_of, lighten, wanted_adapter

    progress.stage("timing a few steps")
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    card = card_of(config)
    encoder = load_encoder(card, random=True)
    spec = resolve_adapter(encoder, wanted_adapter(config))
    if spec.kind != "none":
        adapters.add_adapter(encoder, spec, seed=config.seed)
        lighten(encoder, config, device, dtype)
    net = torch.nn.Sequential(Normaliser(card.mean, card.std), encoder).to(device)
    size = min(config.batch_size, 8) if device.type == "cpu" else config.batch_size
    tiles = torch.randint(0, 255, (size, card.px, card.px, 3), dtype=torch.uint8, device=device)

    def step(learns: bool) -> float:
        began = time.perf_counter()
        with torch.set_grad_enabled(learns), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            out = net(tiles).float().square().mean()
            if learns:
                out.backward()
        float(out.detach())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - began) / size

    took = {}
    for learns in [True, False] if spec.kind != "none" else [False]:
        step(learns)
        took[learns] = min(step(learns) for _ in range(_STEPS))
        progress.advance()
    return Speed(took.get(True, 0.0), took[False])


def extent_of(hold_out: str | None, sections: Sequence[tuple[str, str, int, str]]) -> Extent:
    """Return how much there is to train, as :func:`napari_peka.workflows.folds.plan_split` will divide it.

    Parameters
    ----------
    hold_out
        As :class:`TrainConfig` has it.
    sections
        Name, patient, number of spots and split of each.
    """
    n = sum(s[2] for s in sections)
    if hold_out is None:
        tests = [s[0] for s in sections if s[3].casefold() == "test"]
        hold_out = ", ".join(tests) or ("section" if len(sections) > 1 else "block")
    if hold_out == "block":
        part = n // N_BLOCKS
        return Extent(((n - part, part),) * N_BLOCKS + ((n, 0),), n)
    if hold_out in ("section", "patient"):
        sizes: dict[str, int] = {}
        for name, patient, spots, _ in sections:
            whose = name if hold_out == "section" else patient
            sizes[whose] = sizes.get(whose, 0) + spots
        return Extent((*((n - left, left) for left in sizes.values()), (n, 0)), n)
    names = {name.strip() for name in hold_out.split(",")}
    left = sum(s[2] for s in sections if s[0] in names or s[1] in names)
    return Extent(((n - left, left),), n)


def seconds_needed(speed: Speed, extent: Extent, config: TrainConfig) -> tuple[float, float]:
    """Return the least and the most seconds that a training is likely to take, with all that belongs to it."""
    passes = config.rotations * len(config.views)
    embed = extent.spots * speed.look_s * passes
    total = _START_S + embed  # the frozen encoder's, once
    for trains, looks in extent.trainings:
        total += _EACH_S
        if config.adapter != "none":
            held = trains * config.validation_share
            total += config.epochs * ((trains - held) * speed.learn_s + (held + looks) * speed.look_s)
            total += embed + trains * speed.look_s
            total += (trains + looks) * speed.look_s  # the encoder as it is, before the first epoch
    low, high = total * (1 - UNCERTAIN), total * (1 + UNCERTAIN)
    return float(np.floor(low)), float(np.ceil(high))
