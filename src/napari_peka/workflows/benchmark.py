"""Encoder × adapter × features, each beside the same encoder frozen: does adapting pay, and how much?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_peka.config import HOW_TO_RUN, BenchmarkConfig, TrainConfig
from napari_peka.core import files
from napari_peka.core.progress import NULL, Progress, human_time
from napari_peka.io.cache import TILES, kept_in
from napari_peka.io.section import Section, as_sections
from napari_peka.training import splits
from napari_peka.training.compare import Arm, compare, write_table
from napari_peka.training.evaluate import evaluate
from napari_peka.training.paired import Paired, gather
from napari_peka.training.scoring import Measured
from napari_peka.workflows import folds as part
from napari_peka.workflows.place import Workplace
from napari_peka.workflows.predict import versions
from napari_peka.workflows.spots import refuse_misplaced
from napari_peka.workflows.train import check

if TYPE_CHECKING:
    from napari_peka.training.learn import Taught

TABLE = "benchmark"
OWN = tuple(f"{TABLE}.{ending}" for ending in ("csv", "json", "md", "html"))
#: what a run of other devices may go on with
FREE = {"train": HOW_TO_RUN, "evaluate": {"device", "batch_size"}}


def benchmark(
    sections: Sequence[Section] | Section,
    config: BenchmarkConfig | None = None,
    *,
    output: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress = NULL,
) -> pd.DataFrame:
    """Train and judge every arm on the same folds, and compare each with its own frozen encoder.

    Parameters
    ----------
    sections
        From :func:`read_section` or :func:`read_sections`.
    config
        What to compare; see :class:`BenchmarkConfig`. Frozen arms are added where they were not asked for.
    output
        Folder for ``benchmark.csv``, ``.json``, ``.md`` and ``.html``.
    resume
        Go on after an interruption: what was embedded is not trained again.
    overwrite
        Replace an earlier comparison, or begin anew.
    cache
        Folder of what is kept to save time; None: the user's cache.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Returns
    -------
    DataFrame
        See :func:`napari_peka.training.compare.compare`.
    """
    from napari_peka.training.learn import tile_spec
    from napari_peka.training.report import write_comparison_html

    sections, config = as_sections(sections), config or BenchmarkConfig()
    check_arms(config)
    refuse_misplaced(sections, config.train.min_on_tissue)
    identity = {
        "settings": json.loads(config.model_dump_json(exclude=FREE)),
        "sections": [s.fingerprint for s in sections],
    }
    path = Path(output)
    with Workplace(path, identity, resume=resume, overwrite=overwrite, own=OWN) as place:
        arms = []
        for encoder in config.encoders:
            base = config.train.model_copy(update={"encoder": encoder})
            paired = gather(
                sections, tile_spec(base), min_counts=base.min_counts, cache=kept_in(TILES, cache), progress=progress
            )
            split = part.plan_split(paired, base.hold_out)
            arms += EncoderTable(paired, split, config, encoder, place.folder, progress).arms()
        table = compare(arms, seed=config.evaluate.seed)
        warnings = [*paired.all_warnings, *_of_one_patient(table, progress)]
        built = files.make_folder(place.folder / "table")
        write_table(table, built, TABLE)
        write_comparison_html(
            table, built / f"{TABLE}.html", split=split.words.partition(";")[0],
            warnings=warnings,
            provenance={
                "settings": _shared(identity["settings"]), "sections": part.provenance(paired), "versions": versions(),
            },
        )  # fmt: skip
        place.finish(built)
    return table


def check_arms(config: BenchmarkConfig) -> None:
    """Refuse arms whose settings do not go together, before hours of work."""
    for encoder, adapter in product(config.encoders, config.adapters):
        check(config.train.model_copy(update={"encoder": encoder, "adapter": adapter, "features": "image"}))


def _of_one_patient(table: pd.DataFrame, progress: Progress) -> list[str]:
    """Return, and say, that intervals tell nothing of other patients where there is one."""
    if table["n_patients"].max() > 1:
        return []
    said = "the held-out spots are of one patient: the intervals speak of sections and genes, not of other patients"
    progress.note(said)
    return [said]


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those of training that every arm has of its own."""
    own = {"encoder", "adapter", "seed", "rotations", "context_um", "features"}
    return settings | {"train": {k: v for k, v in settings["train"].items() if k not in own}}


@dataclass(frozen=True)
class Cell:
    """What an arm is made of, seed and fold apart."""

    adapter: str
    features: str
    rotations: int
    context_um: float | None


class EncoderTable:
    """All arms of one encoder.

    Parameters
    ----------
    paired
        All spots, with tiles as the encoder reads them.
    split
        What is held out.
    config
        What to compare.
    encoder
        Name of the encoder.
    folder
        Where embeddings and checkpoints of a run that is interrupted are found again.
    progress
        Where to report.
    """

    def __init__(
        self, paired: Paired, split: part.Split, config: BenchmarkConfig, encoder: str, folder: Path,
        progress: Progress,
    ) -> None:  # fmt: skip
        from napari_peka.models.devices import choose_device, choose_precision

        self.paired, self.split = paired, split
        self.config, self.encoder, self.progress = config, encoder, progress
        self.base = config.train.model_copy(update={"encoder": encoder})
        self.folder = folder / part.file_name(encoder)
        self._taught: dict[tuple[bytes, int], Taught] = {}
        self._begun = self._trainings = 0
        self._said = False
        self.device = choose_device(config.train.device)
        self.dtype = choose_precision(config.train.precision, self.device)

    def arms(self) -> list[Arm]:
        """Return the scores of every arm under every protocol."""
        out = []
        out += self._protocol(self.split, "grouped")
        if self.config.protocol == "paper":
            out += self._protocol(part.paper_split(self.paired, self.base.seed), "paper")
        return out

    def _protocol(self, split: part.Split, name: str) -> list[Arm]:
        goal = part.set_goal(self.paired, dataclasses.replace(split, on_all=False), self.base, progress=self.progress)
        ceilings = part.Ceilings(
            self.paired, goal, self.base.unit, repeats=self.config.evaluate.ceiling_repeats,
            seed=self.config.evaluate.seed,
        )  # fmt: skip
        trains = [a for a in dict.fromkeys(self.config.adapters) if a != "none"]
        self._begun, self._trainings = 0, len(trains) * len(self.config.seeds) * len(split.folds)
        found: dict[Cell, list[Measured]] = {}
        hvg50: dict[str, list[str]] = {}
        for fold in split.folds:
            hvg50[fold.name] = goal.hvg50(self.paired, fold.train)
            baselines = part.baselines_of(goal, fold.train)
            for cell, seed, features in self._features(goal, fold, name):
                settings = self._settings(cell, seed)
                head = part.read_out(features, goal, self.paired, fold.train, settings, progress=self.progress)
                found.setdefault(cell, []).extend(
                    part.measure(head(features), goal, self.paired, fold, seed, baselines, ceilings)
                )
        return [self.arm(cell, parts, goal, hvg50, name) for cell, parts in found.items()]

    def _features(
        self, goal: part.Goal, fold: splits.Fold, protocol: str
    ) -> Iterator[tuple[Cell, int, npt.NDArray[np.float32]]]:
        """Yield what each arm's head reads, one trained encoder after another."""
        config = self.config
        adapters = list(dict.fromkeys(["none", *config.adapters]))
        for adapter, seed in product(adapters, config.seeds):
            for rotations in config.rotations:
                both = self._embedding(goal, fold, protocol, adapter, seed, rotations)
                image = both["image"]
                kinds = {"image": image}
                if "peka" in both:
                    kinds |= {"peka": both["peka"], "image+peka": np.concatenate([image, both["peka"]], 1)}
                for kind, context in product(kinds, config.contexts_um):
                    if kind in config.features or kind == adapter == "image" or (kind == "image" and adapter == "none"):
                        yield (
                            Cell(adapter, kind, rotations, context), seed,
                            part.with_context(kinds[kind], self.paired, context),
                        )  # fmt: skip
        if "teacher" in config.features:
            yield from self._teacher(fold)

    def _teacher(self, fold: splits.Fold) -> Iterator[tuple[Cell, int, npt.NDArray[np.float32]]]:
        """Yield the teacher's own embedding of the measured expression: what a perfect student would read."""
        for seed in self.config.seeds:
            taught = self._teach(fold, seed)
            for rotations, context in product(self.config.rotations, self.config.contexts_um):
                yield (
                    Cell("none", "teacher", rotations, context), seed,
                    part.with_context(taught.embedding, self.paired, context),
                )  # fmt: skip

    def _teach(self, fold: splits.Fold, seed: int) -> Taught:
        """Return what the teacher says: all adapters of one seed and fold are taught the same."""
        from napari_peka.training.learn import teach

        key = (fold.train.tobytes(), seed)
        if key not in self._taught:
            self._taught = {k: v for k, v in self._taught.items() if k[0] == key[0]}  # of former folds none is needed
            settings = self.base.model_copy(update={"seed": seed})
            self._taught[key] = teach(self.paired, fold.train, settings, progress=self.progress)
        return self._taught[key]

    def _embedding(
        self, goal: part.Goal, fold: splits.Fold, protocol: str, adapter: str, seed: int, rotations: int
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return the features of all spots, from a former run where it got so far."""
        from safetensors import SafetensorError
        from safetensors.numpy import load, save

        frozen = adapter == "none"  # knows neither seed nor fold
        name = "frozen" if frozen else f"{adapter}-seed{seed}-{protocol}-{part.file_name(fold.name)}"
        folder = self.folder / name
        kept = folder / f"rotations{rotations}.safetensors"
        found: dict[str, npt.NDArray[np.float32]]
        try:
            found = load(kept.read_bytes())
            return found
        except (FileNotFoundError, SafetensorError):
            pass
        began = perf_counter()
        learnt = self._learnt(goal, fold, adapter, seed, folder)
        files.make_folder(folder)
        features = "image" if frozen else "image+peka"
        for n in self.config.rotations:
            settings = self.base.model_copy(update={"features": features, "rotations": n, "context_um": None})
            both = part.embed_all(learnt, self.paired, settings, self.device, self.dtype, progress=self.progress)
            split = (
                {"image": both} if frozen else {"image": both[:, : learnt.card.dim], "peka": both[:, learnt.card.dim :]}
            )
            arrays = {k: np.ascontiguousarray(v) for k, v in split.items()}
            files.write_whole(folder / f"rotations{n}.safetensors", save(arrays))
        for cached in folder.glob("trunk-*.npy"):
            files.remove_tree(cached)
        if not frozen:
            self._forecast(perf_counter() - began)
        found = load(kept.read_bytes())
        return found

    def _forecast(self, seconds: float) -> None:
        """Say once, after the first training, how long the others will take."""
        left = self._trainings - self._begun
        if not self._said and left:
            self._said = True
            self.progress.stage(
                f"{self.encoder}: a training takes {human_time(seconds)}, {left} more come: about "
                f"{human_time(left * seconds)} in all"
            )

    def _learnt(self, goal: part.Goal, fold: splits.Fold, adapter: str, seed: int, folder: Path) -> Any:
        from napari_peka.training.learn import learn

        settings = self.base.model_copy(update={"adapter": adapter, "seed": seed})
        number = ""
        if adapter != "none":
            self._begun += 1
            number = f" ({self._begun} of {self._trainings})"
        variable = goal.variable(self.paired, fold.train)
        return learn(
            self.paired, fold.train, settings, goal.y, variable, goal.columns, folder=folder, device=self.device,
            dtype=self.dtype, taught=None if adapter == "none" else self._teach(fold, seed),
            title=f" without {fold.name}, seed {seed}{number}", resume=True, progress=self.progress,
        )  # fmt: skip

    def _settings(self, cell: Cell, seed: int) -> TrainConfig:
        return self.base.model_copy(
            update={"adapter": cell.adapter, "seed": seed, "rotations": cell.rotations, "context_um": cell.context_um}
        )

    def arm(
        self, cell: Cell, parts: list[Measured], goal: part.Goal, hvg50: dict[str, list[str]], protocol: str
    ) -> Arm:
        """Score one arm."""
        # groups are sections that train: with one of them the penalty is chosen otherwise
        trains = [set(self.paired.section[f.train]) for f in self.split.folds]
        alone = self.base.ridge_alpha == "groups" and all(len(names) < 2 for names in trains)
        report = evaluate(
            parts, goal.genes, self.base.unit, hvg50=hvg50, model=f"{self.encoder} {cell.adapter}", split=protocol,
            neighbour_smoothing=self.base.smooth_um is not None, optimistic=protocol == "paper",
        )  # fmt: skip
        return Arm.of_report(
            report, encoder=self.encoder, adapter=cell.adapter, features=cell.features,
            averaging=f"{cell.rotations} rotations" if cell.rotations > 1 else "",
            context="" if cell.context_um is None else f"{cell.context_um:g} µm",
            head=f"ridge ({'gcv' if alone else self.base.ridge_alpha})",
        )  # fmt: skip
