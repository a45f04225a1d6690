"""HEST-bench's table: its own patches, genes, folds, unit and read-out, for any encoder and adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from napari_peka.config import BenchmarkConfig, TrainConfig
from napari_peka.core import files
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.fingerprint import fingerprint
from napari_peka.training.compare import Arm, compare, write_table
from napari_peka.training.gene_head import hest_bench_alpha
from napari_peka.training.hest import HEST_UNIT, PATCH_PX, HestTask, hest_tasks, read_hest_task
from napari_peka.training.hest_paired import pair_task, task_folds
from napari_peka.training.metrics import gene_scores, nan_mean
from napari_peka.training.paired import Paired
from napari_peka.training.scoring import Measured
from napari_peka.workflows import folds as part
from napari_peka.workflows.benchmark import FREE, OWN, TABLE, Cell, EncoderTable, check_arms
from napari_peka.workflows.place import Workplace

#: principal components of HEST-bench's read-out
N_COMPONENTS = 256
#: HEST-bench's own figure: PCC over all spots that a split holds out, mean over genes, then over splits
OWN_PCC = "pcc_hest_bench"
#: settings that the benchmark's files decide
_FIXED = ("hold_out", "mpp", "views", "min_counts", "n_top_genes")
_ARM = ("encoder", "adapter", "features", "averaging", "context", "head")


def benchmark_hest(
    folder: Path | str,
    config: BenchmarkConfig | None = None,
    *,
    output: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = NULL,
) -> pd.DataFrame:
    """Compare encoders, adapters and features on tasks of HEST-bench.

    Parameters
    ----------
    folder
        A task's folder, or one of several tasks.
    config
        What to compare. Genes, unit and read-out are those of HEST-bench where ``config.train`` was not given others:
        log1p of the counts; standardised features, 256 principal components, ridge with the penalty
        ``100 / (256 x genes)``; all spots alike, targets as measured.
    output
        Folder for ``benchmark.csv``, ``.json`` and ``.md`` over all tasks, and one folder a task with its own and its
        page.
    resume, overwrite, progress
        As in :func:`napari_peka.workflows.benchmark.benchmark`.

    Returns
    -------
    DataFrame
        Rows of :func:`napari_peka.training.compare.compare` after a column ``task``, and ``pcc_hest_bench``: HEST's own
        figure (PCC over all spots that a split holds out together, mean over genes, then over splits), which stands
        beside published ones. ``pcc`` is taken within each sample.

    Raises
    ------
    SettingError
        If there is no task, or a setting contradicts what its files fix.
    SectionError
        If a file of a task is missing or damaged.

    Notes
    -----
    Jaume et al., NeurIPS 2024; read-out and figure: ``train_test_reg`` and ``merge_fold_results`` in mahmoodlab/HEST.
    """
    config = config or BenchmarkConfig()
    _check(config)
    tasks = read_tasks(Path(folder).expanduser())
    identity = {
        "settings": json.loads(config.model_dump_json(exclude=FREE)),
        "given": sorted(config.train.model_fields_set),
        "tasks": {t.name: _identity(t) for t in tasks},
    }
    own = (*OWN, *(t.name for t in tasks))
    with Workplace(Path(output), identity, resume=resume, overwrite=overwrite, own=own) as place:
        built = files.make_folder(place.folder / "table")
        tables = [_one_task(task, config, place.folder / task.name, built / task.name, progress) for task in tasks]
        whole = pd.concat(tables, ignore_index=True)
        write_table(whole, built, TABLE)
        files.write_whole(built / f"{TABLE}.md", hest_markdown(whole).encode())
        place.finish(built)
    return whole


def read_tasks(folder: Path) -> list[HestTask]:
    """Return the task that a folder is, or those that it holds."""
    if (folder / "splits").is_dir():
        return [read_hest_task(folder)]
    return [read_hest_task(folder / name) for name in hest_tasks(folder)]


def hest_settings(config: TrainConfig, task: HestTask) -> TrainConfig:
    """Return the settings with HEST-bench's in place of defaults that nobody chose."""
    components = config.n_components or N_COMPONENTS
    own: dict[str, Any] = {
        "genes": list(task.genes), "unit": HEST_UNIT, "n_components": N_COMPONENTS, "depth_power": 0.0,
        "ridge_alpha": hest_bench_alpha(components, len(config.genes or task.genes)), "centre_sections": False,
        "target_rank": None,
    }  # fmt: skip
    return config.model_copy(update={k: v for k, v in own.items() if k not in config.model_fields_set})


def hest_markdown(table: pd.DataFrame) -> str:
    """Return HEST-bench's figure of each arm, a column a task and their mean, in Markdown."""
    tasks = list(dict.fromkeys(table["task"]))
    shown = [c for c in _ARM[:-1] if any(table[c])]
    lines = ["| " + " | ".join([*shown, *tasks, "mean"]) + " |", "|" + "---|" * (len(shown) + len(tasks) + 1)]
    for names, rows in table.groupby(shown, sort=False):
        scores = rows.set_index("task")[OWN_PCC].reindex(tasks)
        figures = ["" if np.isnan(v) else f"{v:.3f}" for v in [*scores, scores.mean()]]
        lines.append("| " + " | ".join([*map(str, names), *figures]) + " |")
    return "\n".join(lines) + "\n"


class HestTable(EncoderTable):
    """All arms of one encoder on a task; remembers HEST-bench's figure of each grouped one."""

    def __init__(
        self, paired: Paired, split: part.Split, config: BenchmarkConfig, encoder: str, folder: Path,
        progress: Progress,
    ) -> None:  # fmt: skip
        super().__init__(paired, split, config, encoder, folder, progress)
        self.own: dict[tuple[str, ...], float] = {}

    def arm(
        self, cell: Cell, parts: list[Measured], goal: part.Goal, hvg50: dict[str, list[str]], protocol: str
    ) -> Arm:
        """Score one arm in both ways."""
        arm = super().arm(cell, parts, goal, hvg50, protocol)
        if protocol == "grouped":
            self.own[tuple(getattr(arm, name) for name in _ARM)] = pooled_pcc(parts)
        return arm


def pooled_pcc(parts: Sequence[Measured]) -> float:
    """Return HEST-bench's figure: each gene's PCC over all spots that a split holds out, mean over genes, then splits.

    Genes that are constant there have none and are left out, where HEST-bench's mean would be NaN.
    """
    runs: dict[tuple[str, int], list[Measured]] = {}
    for m in parts:
        runs.setdefault((m.fold, m.seed), []).append(m)
    scores = []
    for run in runs.values():
        truth, predicted = (np.concatenate([getattr(m, k) for m in run]) for k in ("truth", "predicted"))
        scores.append(float(nan_mean(gene_scores(truth, predicted, ["pcc"])["pcc"])))
    return float(nan_mean(np.array(scores)))


def _one_task(task: HestTask, config: BenchmarkConfig, folder: Path, built: Path, progress: Progress) -> pd.DataFrame:
    from napari_peka.training.learn import card_of
    from napari_peka.training.report import write_comparison_html

    config = config.model_copy(update={"train": hest_settings(config.train, task)})
    words = f"{task.name} of HEST-bench, {len(task.sections)} samples, its own {len(task.folds)} splits"
    arms: list[Arm] = []
    own: dict[tuple[str, ...], float] = {}
    warnings: dict[str, None] = {}
    for encoder in config.encoders:
        card = card_of(config.train.model_copy(update={"encoder": encoder}))
        if card.mpp != PATCH_PX / card.px * 0.5:
            progress.note(
                f"{encoder} is made for {card.px} px at {card.mpp:g} µm/px; HEST-bench's patches of 112 µm are brought "
                f"to {card.px} px"
            )
        paired = pair_task(task, card.px, progress=progress)
        split = part.Split("section", task_folds(task, paired), False, words)
        table = HestTable(paired, split, config, encoder, folder, progress)
        arms += table.arms()
        own |= table.own
        warnings |= dict.fromkeys(paired.warnings)
    out = compare(arms, seed=config.evaluate.seed)
    out.insert(0, "task", task.name)
    out.insert(out.columns.get_loc("pcc"), OWN_PCC, [own.get(tuple(row), np.nan) for row in out[list(_ARM)].to_numpy()])
    files.make_folder(built)
    write_table(out, built, TABLE)
    write_comparison_html(
        out, built / f"{TABLE}.html", title=f"HEST-bench: {task.name}", split=words, warnings=list(warnings)
    )
    return out


def _check(config: BenchmarkConfig) -> None:
    check_arms(config)
    for name in _FIXED:
        given, own = getattr(config.train, name), TrainConfig.model_fields[name].default
        if given != own:
            raise SettingError(
                f"{name} = {given} cannot be used with HEST-bench, whose files decide it; leave {name} away"
            )


def _identity(task: HestTask) -> list[Any]:
    """Return what decides a task's result, fit for JSON, without reading all of its files."""
    samples = {s.section_id: [fingerprint(s.patches), fingerprint(s.expression)] for s in task.sections.values()}
    return [list(task.genes), [[f.name, list(f.train), list(f.test)] for f in task.folds], samples]
