"""The command line's second half: learning from paired sections, judging what was learnt, and what is kept for it.

A training that diverges ends with exit code 2: it is mended by settings, not by another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from napari_peka.cli_output import (
    cache_text,
    comparison_text,
    files_text,
    report_text,
    settings_rows,
    settings_text,
    write_result,
)
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import Cancelled

if TYPE_CHECKING:
    from napari_peka.config import BenchmarkConfig, Settings
    from napari_peka.console import ConsoleProgress
    from napari_peka.io.section import Section
    from napari_peka.models.bundle import Model

S = TypeVar("S", bound="Settings")

#: what ends the error line of an interruption
_RESUMES = "interrupted; the same command with --resume goes on from here"
_BEGINS_ANEW = "interrupted; run the same command again"

Sections = Annotated[
    list[Path],
    typer.Argument(
        help="Paired sections (Space Ranger outs, .h5ad, SpatialData .zarr, ST .tsv.gz), or a CSV manifest of them.",
        readable=False,
    ),
]
ModelName = Annotated[str, typer.Argument(help="demo, a bundle's folder or .zip, its name, or a hub id.")]
HoldOut = Annotated[
    str | None, typer.Option(help="section, patient or block, each left out in turn; or names, left out for good.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML of settings; options here go before it.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; `napari-peka settings COMMAND` lists them."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, or begin anew.")]
Image = Annotated[Path | None, typer.Option(help="Full-resolution image of the one section that is given.")]
SectionName = Annotated[
    str | None, typer.Option("--section", help="Name of the one section; in a file of several also which.")
]
Mpp = Annotated[float | None, typer.Option(help="µm per pixel of the one section's image, where no file says it.")]
Affine = Annotated[
    Path | None, typer.Option(help="JSON that maps the one section's positions to its image: affine or point pairs.")
]
Patient = Annotated[str | None, typer.Option(help="Whose the sections are of which no manifest says it.")]
BinUm = Annotated[float | None, typer.Option(help="Bins of Visium HD, in µm; 16 by default.")]


def train(
    sections: Sections,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the model; its report lies inside.")],
    encoder: Annotated[str | None, typer.Option(help="Encoder to adapt; `napari-peka models` lists them.")] = None,
    adapter: Annotated[str | None, typer.Option(help="bone, bat, lora, adalora, hra, dora, none or full.")] = None,
    teacher: Annotated[str | None, typer.Option(help="pca, scvi, pathways, obsm:KEY, or a file of embeddings.")] = None,
    hold_out: HoldOut = None,
    epochs: Annotated[int | None, typer.Option(help="Times that each tile is looked at.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    organ: Annotated[str | None, typer.Option(help="Of which organ the sections are; the model says so.")] = None,
    device: Device = None,
    devices: Annotated[int | None, typer.Option(help="GPUs to train on.")] = None,
    config: ConfigFile = None,
    settings: SetOption = None,
    resume: Resume = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="With --resume: end the interrupted training with its best epoch so far.")
    ] = False,
    overwrite: Overwrite = False,
    image: Image = None,
    section: SectionName = None,
    mpp: Mpp = None,
    affine: Affine = None,
    patient: Patient = None,
    bin_um: BinUm = None,
    as_json: Json = False,
) -> None:
    """Learn a model from paired sections, and judge it on sections that it has not seen."""
    from napari_peka.config import TrainConfig
    from napari_peka.workflows.train import train as run

    given = {
        "encoder": encoder, "adapter": adapter, "teacher": teacher, "hold_out": hold_out, "epochs": epochs,
        "seed": seed, "organ": organ, "device": device, "devices": devices,
    }  # fmt: skip
    wanted = _settings(TrainConfig, config, settings, given)
    one = {"image": image, "section": section, "mpp": mpp, "affine": affine}
    with _opened(sections, one, patient, bin_um, output.name, _RESUMES) as (opened, progress):
        model = run(opened, wanted, output=output, resume=resume, finish=finish, overwrite=overwrite, progress=progress)
        _write_made(model, opened, output, progress, as_json)


def refit(
    model: ModelName,
    sections: Sections,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new model; its report lies inside.")],
    start: Annotated[
        str | None, typer.Option(help="model: correct its head as far as the spots allow; nothing: forget it.")
    ] = None,
    genes: Annotated[str | None, typer.Option(help="Genes to predict, separated by commas; all by default.")] = None,
    hold_out: HoldOut = None,
    device: Device = None,
    config: ConfigFile = None,
    settings: SetOption = None,
    overwrite: Overwrite = False,
    image: Image = None,
    section: SectionName = None,
    mpp: Mpp = None,
    affine: Affine = None,
    patient: Patient = None,
    bin_um: BinUm = None,
    as_json: Json = False,
) -> None:
    """Fit a model's gene head anew on measured spots; what it sees in a tile stays as it is."""
    from napari_peka.config import RefitConfig
    from napari_peka.models.zoo import load_model
    from napari_peka.workflows.refit import refit as run

    given = {"start": start, "genes": _list(genes), "hold_out": hold_out, "device": device}
    wanted = _settings(RefitConfig, config, settings, given)
    loaded = load_model(model)
    one = {"image": image, "section": section, "mpp": mpp, "affine": affine}
    with _opened(sections, one, patient, bin_um, output.name, _BEGINS_ANEW) as (opened, progress):
        made = run(loaded, opened, wanted, output=output, overwrite=overwrite, progress=progress)
        _write_made(made, opened, output, progress, as_json)


def recalibrate(
    result: Annotated[Path, typer.Argument(help="A result, RESULT.peka.zarr.", readable=False)],
    spots: Annotated[Path, typer.Argument(help="Spots measured on its slide, as for train.", readable=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Another result to write; by default this one is changed.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another result at OUTPUT.")] = False,
    image: Image = None,
    section: SectionName = None,
    mpp: Mpp = None,
    affine: Affine = None,
    bin_um: BinUm = None,
    as_json: Json = False,
) -> None:
    """Fit the intervals of a map to spots that were measured on its slide; its values stay."""
    from napari_peka.cli_output import recalibrated_text
    from napari_peka.io.prediction import read_prediction
    from napari_peka.workflows.recalibrate import recalibrate as run

    prediction = read_prediction(result)
    prediction.needed_intervals()
    one = {"image": image, "section": section, "mpp": mpp, "affine": affine}
    with _opened([spots], one, None, bin_um, result.name, _BEGINS_ANEW) as (opened, progress):
        made = run(prediction, opened[0], output=output, overwrite=overwrite, progress=progress)
        data = {"result": str(made.path), **{k: made.fitted[k] for k in ("section", "spots", "genes", "coverage_90")},
                "warnings": list(progress.notes)}  # fmt: skip
    write_result(data, as_json, recalibrated_text(data))


def evaluate(
    model: ModelName,
    sections: Sections,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for report.json, genes.csv, report.html.")],
    device: Device = None,
    config: ConfigFile = None,
    settings: SetOption = None,
    image: Image = None,
    section: SectionName = None,
    mpp: Mpp = None,
    affine: Affine = None,
    patient: Patient = None,
    bin_um: BinUm = None,
    as_json: Json = False,
) -> None:
    """Score a model on measured sections as they are given."""
    from napari_peka.config import EvaluateConfig
    from napari_peka.models.zoo import load_model
    from napari_peka.workflows.evaluate import evaluate as run

    wanted = _settings(EvaluateConfig, config, settings, {"device": device})
    loaded = load_model(model)
    one = {"image": image, "section": section, "mpp": mpp, "affine": affine}
    with _opened(sections, one, patient, bin_um, loaded.name, _BEGINS_ANEW) as (opened, progress):
        run(loaded, opened, wanted, output=output, progress=progress)
        document = _read_report(output, progress)
    text = f"{report_text(document)}\n{files_text(report=output / 'report.html')}"
    write_result(document, as_json, text)


def benchmark(
    sections: Sections,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the table (CSV, JSON, Markdown, HTML).")],
    encoders: Annotated[str | None, typer.Option(help="Encoders, separated by commas.")] = None,
    adapters: Annotated[str | None, typer.Option(help="Adapters, separated by commas; none is always there.")] = None,
    features: Annotated[str | None, typer.Option(help="image, peka, image+peka, teacher.")] = None,
    rotations: Annotated[str | None, typer.Option(help="1, 4, 8: images of a tile that are averaged.")] = None,
    contexts: Annotated[str | None, typer.Option(help="Radii of neighbours in µm; 0 for none.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="grouped; or paper: spots at random too, to see how much that flatters.")
    ] = None,
    hold_out: HoldOut = None,
    epochs: Annotated[int | None, typer.Option(help="Times that each tile is looked at.")] = None,
    teacher: Annotated[str | None, typer.Option(help="pca, scvi, pathways, obsm:KEY, or a file of embeddings.")] = None,
    device: Device = None,
    config: ConfigFile = None,
    settings: SetOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    patient: Patient = None,
    bin_um: BinUm = None,
    as_json: Json = False,
) -> None:
    """Compare encoders, adapters and features, each beside the same encoder frozen, on sections or HEST-bench tasks."""
    from napari_peka.config import BenchmarkConfig, TrainConfig
    from napari_peka.training.evaluate import plain
    from napari_peka.workflows.benchmark import benchmark as run

    base = _settings(
        TrainConfig, config, settings, {"hold_out": hold_out, "epochs": epochs, "teacher": teacher, "device": device}
    )
    lists: dict[str, Any] = {
        "encoders": _list(encoders), "adapters": _list(adapters), "features": _list(features),
        "rotations": _list(rotations, int), "seeds": _list(seeds, int), "protocol": protocol,
        "contexts_um": None if contexts is None else [v or None for v in _list(contexts, float) or []],
    }  # fmt: skip
    lists["encoders"] = lists["encoders"] or [base.encoder]
    wanted = BenchmarkConfig(train=base, **{k: v for k, v in lists.items() if v is not None})
    if _of_hest(sections):
        _benchmark_hest(sections[0], wanted, output, resume, overwrite, as_json)
        return
    with _opened(sections, {}, patient, bin_um, "benchmark", _RESUMES) as (opened, progress):
        table = run(opened, wanted, output=output, resume=resume, overwrite=overwrite, progress=progress)
    rows = plain(table.to_dict("records"))
    write_result(rows, as_json, f"{comparison_text(rows)}\n\n{files_text(table=output / 'benchmark.html')}")


def _of_hest(paths: list[Path]) -> bool:
    """Return whether a folder of HEST-bench is given: a task with its splits, or several tasks."""
    if len(paths) != 1 or not paths[0].is_dir():
        return False
    return any((folder / "splits").is_dir() for folder in (paths[0], *paths[0].iterdir()))


def _benchmark_hest(
    folder: Path, config: BenchmarkConfig, output: Path, resume: bool, overwrite: bool, as_json: bool
) -> None:
    from napari_peka.console import console_progress
    from napari_peka.training.evaluate import plain
    from napari_peka.workflows.hest import benchmark_hest, hest_markdown

    try:
        with console_progress("benchmark") as progress:
            table = benchmark_hest(folder, config, output=output, resume=resume, overwrite=overwrite, progress=progress)
    except (KeyboardInterrupt, Cancelled) as e:
        raise Cancelled(_RESUMES) from e
    text = f"{hest_markdown(table)}\n{files_text(table=output / 'benchmark.md')}"
    write_result(plain(table.to_dict("records")), as_json, text)


class Job(StrEnum):
    """What has settings."""

    TRAIN = "train"
    REFIT = "refit"
    EVALUATE = "evaluate"
    BENCHMARK = "benchmark"
    PREDICT = "predict"


def settings(
    job: Annotated[Job, typer.Argument(help="Of which command.")] = Job.TRAIN,
    as_json: Json = False,
) -> None:
    """List every setting that --set and --config take, with its default."""
    from napari_peka import config

    kind = getattr(config, f"{job.value.capitalize()}Config")
    rows = settings_rows(kind)
    write_result(rows, as_json, settings_text(rows))


class CacheAction(StrEnum):
    """What to do with what is kept."""

    LIST = "list"
    PRUNE = "prune"


def cache(
    action: Annotated[CacheAction, typer.Argument(help="Show what is kept, or remove it.")] = CacheAction.LIST,
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="Only what is at least this old.")] = 0.0,
    keep_gb: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0, help="Remove the oldest until the rest is no more than this."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is kept to save time (cut tiles, images out of files), or remove it; it is made again when needed.

    NAPARI_PEKA_CACHE moves the folder. Do not prune while a training runs.
    """
    from napari_peka.io import cache as kept

    removes = action is CacheAction.PRUNE
    if keep_gb is not None and not removes:
        raise SettingError("--keep-gb says what prune is to leave; list removes nothing")
    if removes:
        entries = kept.prune(older_than_days=older_than, keep_bytes=None if keep_gb is None else round(keep_gb * 1e9))
    else:
        entries = kept.listing(older_than_days=older_than)
    folder = kept.cache_folder()
    data = {
        "folder": str(folder),
        "removed" if removes else "entries": [vars(e) | {"path": str(e.path)} for e in entries],
        "size_bytes": sum(e.size_bytes for e in entries),
    }
    write_result(data, as_json, cache_text(entries, folder, removed=removes))


@contextmanager
def _opened(
    paths: list[Path], of_one: dict[str, Any], patient: str | None, bin_um: float | None, title: str, interrupted: str
) -> Iterator[tuple[list[Section], ConsoleProgress]]:
    """Open the sections while the block runs, one of them with `of_one`; an interruption ends with `interrupted`."""
    from napari_peka.console import console_progress
    from napari_peka.io.section import read_section, read_sections

    one = len(paths) == 1 and paths[0].suffix.lower() != ".csv"
    given = [name for name, value in of_one.items() if value is not None]
    if given and not one:
        raise SettingError(f"--{given[0]} is of one section; for several, say it in a manifest's column {given[0]}")
    opened: list[Section] = []
    try:
        with console_progress(title) as progress:
            if one:
                opened = [read_section(paths[0], **of_one, patient=patient, bin_um=bin_um, progress=progress)]
            else:
                opened = read_sections(paths, patient=patient, bin_um=bin_um, progress=progress)
            yield opened, progress
    except (KeyboardInterrupt, Cancelled) as e:
        raise Cancelled(interrupted) from e
    finally:
        for s in opened:
            s.close()


def _write_made(model: Model, opened: list[Section], output: Path, progress: ConsoleProgress, as_json: bool) -> None:
    """Say what was made, and how well it did on what was held out."""
    from napari_peka.workflows.train import REPORT

    document = _read_report(Path(model.source) / REPORT, progress)
    data = {
        "model": str(output),
        "report": str(output / REPORT),
        "sections": [s.section_id for s in opened],
        "split": document["split"],
        "summary": document["summary"],
        "warnings": list(progress.notes),
    }
    written = files_text(what=model.spec.description, model=output, report=output / REPORT / "report.html")
    write_result(data, as_json, f"{report_text(document)}\n{written}")


def _read_report(folder: Path, progress: ConsoleProgress) -> dict[str, Any]:
    """Return ``report.json``; its warnings are said on the terminal too, each once."""
    document: dict[str, Any] = json.loads((folder.expanduser() / "report.json").read_text("utf-8"))
    _say_new(document["warnings"], progress)
    return document


def _say_new(warnings: Iterable[str], progress: ConsoleProgress) -> None:
    for text in warnings:
        if text not in progress.notes:
            progress.note(text)


def _settings(kind: type[S], file: Path | None, pairs: list[str] | None, given: dict[str, Any]) -> S:
    """Return settings: an option goes before ``--set``, which goes before the file."""
    values = _from_file(file) if file else {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SettingError(f"--set takes NAME=VALUE, such as rank=64; got {pair!r}")
        values[name.strip()] = _yaml(text, f"--set {pair}")
    return kind(**values | {k: v for k, v in given.items() if v is not None})


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = _yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise SettingError(f"the settings file {path} cannot be read ({e})") from e
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingError(f"{path} must hold settings as NAME: VALUE, one a line")
    return {str(k): v for k, v in values.items()}


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise SettingError(f"{where} is not YAML: {' '.join(str(e).split())}") from e


def _list(text: str | None, kind: type = str) -> list[Any] | None:
    if text is None:
        return None
    try:
        return [kind(v.strip()) for v in text.split(",") if v.strip()]
    except ValueError as e:
        raise SettingError(f"{text!r} must be numbers separated by commas") from e
