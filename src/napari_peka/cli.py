"""The command line: options, console progress, exit codes. The work is done by the rooms below.

Exit codes: 0 all done; 2 wrong usage or bad input; 1 anything else; 130 interrupted. With ``--json`` standard output
holds one JSON document and nothing else; progress and messages go to standard error.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_peka import cli_learn, cli_slide
from napari_peka.cli_output import write_result
from napari_peka.core.errors import (
    DeviceError,
    EncoderUnavailable,
    NoResult,
    OutputMismatch,
    PekaError,
    SettingError,
    StoreError,
)
from napari_peka.core.progress import Cancelled

if TYPE_CHECKING:
    from napari_peka.config import PredictConfig

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Where each gene is expressed on your own H&E slide, and how far to believe it. "
    "Research use only. Not for diagnosis.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Mpp = Annotated[float | None, typer.Option(help="µm per pixel of the slide, when the file has none or a wrong one.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]

#: a known gene that the demo model predicts well
DEMO_GENE = "ERBB2"
#: a quarter of the demo model's tile: the embedded slide is 1.5 mm high, whole tiles would be a coarse map
DEMO_STRIDE_PX = 56
INTERRUPTED = 130
#: bad input is 2; these come from the machine, not from what was asked
_MACHINE = (StoreError, DeviceError, EncoderUnavailable)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"napari-peka {version('napari-peka')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _plain_streams()
    if not os.environ.get("NAPARI_PEKA_DEBUG"):  # what libraries log is said here in a sentence, or is no news
        logging.getLogger().addHandler(logging.NullHandler())
    with _terminated_is_interrupted():
        try:
            code = app(args=args, prog_name="napari-peka", standalone_mode=False) or 0
            if code == INTERRUPTED:  # typer turns Ctrl-C into a code, and says nothing
                raise KeyboardInterrupt
            if sys.stdout is not None:
                sys.stdout.flush()
        except (KeyboardInterrupt, Cancelled, typer.Abort) as e:
            code = _fail(str(e) or "interrupted; the same command goes on from here", INTERRUPTED)
        except SystemExit as e:  # typer ends by itself when nobody reads standard output any more
            code = _fail("standard output was closed before all was written", 1) if e.code else 0
        except Exception as e:  # noqa: BLE001 - a person never gets a traceback
            code = _fail(*sentence(e))
    sys.exit(code)


def exit_code(e: BaseException) -> int:
    """Return the exit code for an error: 2 for bad input, 1 for what the machine lacks."""
    return 1 if isinstance(e, _MACHINE) and not isinstance(e, (OutputMismatch, NoResult)) else 2


def sentence(e: Exception) -> tuple[str, int]:
    """Return one line for an error, and its exit code."""
    if isinstance(e, PekaError):
        return str(e), exit_code(e)
    if hasattr(e, "format_message") and hasattr(e, "exit_code"):  # click's own usage errors
        return e.format_message() or "no command was given; `napari-peka --help` lists them", 2
    if os.environ.get("NAPARI_PEKA_DEBUG"):
        _say("".join(traceback.format_exception(e)).rstrip())
    if isinstance(e, MemoryError):
        return "not enough memory; close other programs, or give a smaller --batch-size or a --roi", 1
    if isinstance(e, OSError) and e.errno == errno.ENOSPC:
        return "the disk is full; free some space and run again", 1
    if isinstance(e, BrokenPipeError):
        return "standard output was closed before all was written", 1
    return f"{type(e).__name__}: {e} (unexpected; NAPARI_PEKA_DEBUG=1 shows where)", 1


def _fail(text: str, code: int) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # nobody reads, or the disk is full: the interpreter would try once more at its end
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _say(f"error: {' '.join(text.split())}")
    return code


def _plain_streams() -> None:
    for stream in (sys.stdout, sys.stderr):  # a console in another encoding must not end a run over a µ
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Let a scheduler's SIGTERM end a run as Ctrl-C does: with its line, and without what was half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    if sys.stderr is None:  # print would take standard output instead
        return
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for picture and map.")] = Path(
        "napari-peka-demo"
    ),
    device: Device = "auto",
    open_napari: Annotated[bool, typer.Option("--open/--no-open", help="Open napari when there is a display.")] = False,
    as_json: Json = False,
) -> None:
    """Run the main job on the embedded slide and model, offline."""
    from napari_peka.config import PredictConfig
    from napari_peka.io.sample import sample_slide

    config = PredictConfig(device=device, stride_px=DEMO_STRIDE_PX)
    # the demo's folder is its own: what an older version left there is in nobody's way
    (entry,) = _predict_many([sample_slide()], _model("demo"), output, [DEMO_GENE], config=config, overwrite=True)
    if "error" in entry:
        raise typer.Exit(_fail(entry["error"], entry["code"]))
    write_result(entry, as_json, f"map      {entry['output']}\npicture  {entry['pictures'][0]}")
    if open_napari:
        _open_napari(sample_slide(), entry["output"], DEMO_GENE)


app.command()(cli_slide.info)


@app.command()
def predict(
    # readable: typer would refuse the whole command for one slide that may not be read
    slides: Annotated[
        list[Path],
        typer.Argument(help="Whole-slide images, folders of them, or manifests (CSV: path, mpp).", readable=False),
    ],
    model: Annotated[str, typer.Option(help="demo, a bundle's folder or .zip, its name, or a hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    genes: Annotated[str | None, typer.Option(help="Genes to draw as PNG, separated by commas.")] = None,
    roi: Annotated[
        Path | None, typer.Option(help="GeoJSON of a region in level-0 pixels, as QuPath writes it.")
    ] = None,
    mpp: Mpp = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    backend: Annotated[str, typer.Option(help="What runs the encoder: auto, torch, openvino or onnx.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Tiles a forward pass.")] = None,
    stride_px: Annotated[
        int | None,
        typer.Option(
            help="Distance of tiles in px at the model's mpp; a tile's side by default, half of it is twice as fine."
        ),
    ] = None,
    min_tissue: Annotated[float, typer.Option(help="Least share of a tile that must be tissue.")] = 0.25,
    tissue_threshold: Annotated[
        float | None,
        typer.Option(help="Lab distance from glass that tissue has at least; else it is found."),
    ] = None,
    find_tissue: Annotated[
        bool, typer.Option(help="Only tiles on tissue, or every tile of the region or slide.")
    ] = True,
    stain: Annotated[
        str, typer.Option(help="Bring the colours towards the model's training data: none, macenko or reinhard.")
    ] = "none",
    organ: Annotated[
        str | None, typer.Option(help="Of which organ the slides are; the verdict says whether the model knows it.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Compute by workers: local (a process a GPU), slurm, pbs, lsf, or a dask scheduler's address or file."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of local, or jobs of a scheduler.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a result of another slide, model or setting.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say how many tiles there are and how long they take, by timing a few."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict the expression maps of slides. Interrupted, the same command goes on where it stopped."""
    from napari_peka.config import PredictConfig
    from napari_peka.console import console_progress, estimate_text, predict_text
    from napari_peka.io.slide_list import list_slides
    from napari_peka.workflows.many import check_names

    config = PredictConfig(
        device=device, precision=precision, backend=backend, batch_size=batch_size, stride_px=stride_px,
        min_tissue=min_tissue, find_tissue=find_tissue, tissue_threshold=tissue_threshold, stain=stain,
        organ=organ,
    )  # fmt: skip
    if workers is not None and cluster is None:
        raise SettingError("--workers says how many workers a cluster has: give --cluster local, slurm, ... too")
    if dry_run and cluster is not None:
        raise SettingError("--dry-run times tiles on this machine: leave --cluster away")
    with console_progress("slides") as progress:
        listed = list_slides(slides, progress=progress)
    paths, said = [one.path for one in listed], {one.path: one.mpp for one in listed}
    check_names(paths)
    loaded = _model(model)
    wanted = list(dict.fromkeys(g.strip() for g in (genes or "").split(",") if g.strip()))
    for gene in wanted:
        loaded.head.index(gene)  # an unknown gene is said before hours of work
    with _crew_forward(cluster, workers, loaded, config) as crew:
        entries = _predict_many(
            paths, loaded, output, wanted, roi=roi, mpp=lambda path: said[path] or mpp, config=config,
            overwrite=overwrite, dry_run=dry_run, **crew,
        )  # fmt: skip
    text = (estimate_text if dry_run else predict_text)(entries)
    write_result([{k: v for k, v in e.items() if k != "code"} for e in entries], as_json, text)
    failed = [e for e in entries if "error" in e]
    if failed:
        more = f" ({len(failed)} of {len(entries)} slides failed)" if len(entries) > 1 else ""
        first = min(failed, key=lambda e: e["code"])  # 1, the machine's fault, before 2, the input's
        raise typer.Exit(_fail(first["error"] + more, first["code"]))


@app.command()
def export(
    result: Annotated[Path, typer.Argument(help="A result, RESULT.peka.zarr.", readable=False)],
    to: Annotated[str, typer.Option(help="h5ad, spatialdata, ome-zarr, ome-tiff, geojson, csv, png or svg.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File with the format's ending, or a folder.")],
    genes: Annotated[str | None, typer.Option(help="Genes, separated by commas; all: all of them.")] = None,
    gene_sets: Annotated[
        str | None,
        typer.Option(help="Sets of genes whose scores are added: FILE.gmt, or published ones by name; by commas."),
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="GeoJSON of named regions in level-0 pixels, as QuPath writes it.")
    ] = None,
    slide: Annotated[Path | None, typer.Option(help="The slide, for formats that show it.")] = None,
    intervals: Annotated[
        bool | None,
        typer.Option(help="Both ends of each value's 90 % interval; by default in tables of up to 1,000 genes."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a result as a file of another program: scanpy, squidpy, QuPath, Fiji, a spreadsheet, a figure."""
    from contextlib import ExitStack

    from napari_peka.cli_output import files_text
    from napari_peka.console import console_progress
    from napari_peka.io.export import export as run
    from napari_peka.io.export import format_of
    from napari_peka.io.prediction import read_prediction
    from napari_peka.io.regions import regions_by_name
    from napari_peka.io.slide import open_slide
    from napari_peka.io.statistics import gene_sets_of

    format_of(to)
    prediction = read_prediction(result)
    wanted = None if genes is None else [g.strip() for g in genes.split(",") if g.strip()]
    wanted = list(prediction.genes) if wanted == ["all"] else wanted
    sets = {} if gene_sets is None else gene_sets_of([s.strip() for s in gene_sets.split(",") if s.strip()])
    named = {} if regions is None else regions_by_name(regions)
    with ExitStack() as opened, console_progress(result.name) as progress:
        shown = None if slide is None else opened.enter_context(open_slide(slide))
        try:
            written = run(
                prediction, to, output, genes=wanted, sets=sets, regions=named, slide=shown, intervals=intervals,
                overwrite=overwrite, progress=progress,
            )  # fmt: skip
        except (KeyboardInterrupt, Cancelled) as e:
            raise Cancelled("interrupted; run the same command again") from e
        data = {
            "result": str(result), "to": to, "files": [str(p) for p in written], "tiles": len(prediction.tiles),
            "unit": prediction.unit, "warnings": list(progress.notes),
        }  # fmt: skip
    write_result(data, as_json, "\n".join(files_text(written=p) for p in written))


app.command()(cli_learn.train)
app.command()(cli_learn.refit)
app.command()(cli_learn.recalibrate)
app.command()(cli_learn.evaluate)
app.command()(cli_learn.benchmark)
app.command()(cli_learn.settings)
app.command()(cli_learn.cache)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="A model or an encoder.")] = None,
    genes: Annotated[bool, typer.Option("--genes", help="The model's genes, best predicted first.")] = False,
    as_json: Json = False,
) -> None:
    """List models and encoders, or show one."""
    from napari_peka.console import genes_text, listing_text, rows
    from napari_peka.models.zoo import gene_table, listing, show

    if genes:
        if name is None:
            raise SettingError("--genes needs the name of a model, such as: napari-peka models demo --genes")
        table = gene_table(name)
        write_result(table, as_json, genes_text(table))
        return
    data = listing() if name is None else show(name)
    write_result(data, as_json, listing_text(data) if name is None else "\n".join(rows(data)))


@app.command()
def doctor(
    speed: Annotated[
        bool,
        typer.Option("--speed", help="Time a model by each backend in each number format; say which to choose."),
    ] = False,
    model: Annotated[str, typer.Option(help="With --speed: whose encoder is timed.")] = "demo",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what this machine can do, with the mend for what it cannot."""
    from napari_peka.doctor import as_text, examine

    if speed:
        from napari_peka.console import console_progress, speeds_text
        from napari_peka.workflows.speed import speeds

        with console_progress("doctor") as progress:
            found = speeds(_model(model), device=device, progress=progress)
        write_result(found.as_dict(), as_json, speeds_text(found))
        return
    checks = examine(_model)
    write_result(checks, as_json, as_text(checks))


def _open_napari(slide: Path, result: str, gene: str) -> None:
    """Open napari in a process of its own and wait until it is closed: this floor knows nothing of windows."""
    import subprocess

    command = [sys.executable, "-m", "napari_peka.gui.launch", str(slide), result, gene]
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)


def _model(name: str) -> Any:
    from napari_peka.models.zoo import load_model

    return load_model(name)


@contextmanager
def _crew_forward(
    cluster: str | None, workers: int | None, model: Any, config: PredictConfig
) -> Iterator[dict[str, Any]]:
    """Give what predicting takes for workers to compute; nothing where there is no cluster."""
    if cluster is None:
        yield {}
        return
    from napari_peka.console import console_progress
    from napari_peka.workflows.crew import open_crew

    with ExitStack() as open_:
        with console_progress(cluster) as progress:
            crew = open_.enter_context(open_crew(cluster, workers, progress=progress))
            forward = crew.forward(model, config)
        yield {"forward": forward}


def _predict_many(
    slides: list[Path], model: Any, output: Path, genes: list[str], *, config: PredictConfig, dry_run: bool = False,
    **how: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Predict slides, or say what predicting them would take; an entry has ``error`` and ``code`` where one failed."""
    from napari_peka.console import console_progresses
    from napari_peka.workflows.estimate import estimate_many
    from napari_peka.workflows.many import predict_many

    def title(i: int, slide: Path) -> str:
        return f"[{i + 1}/{len(slides)}] {slide.name}" if len(slides) > 1 else slide.name

    walk = estimate_many if dry_run else partial(predict_many, genes=genes)
    entries: dict[int, dict[str, Any]] = {}
    with console_progresses() as progress, ExitStack() as open_:
        if "forward" in how:
            how["pile"] = open_.enter_context(progress("all slides"))
        for outcome in walk(
            slides, model, output, config=config, progress_of=lambda i, p: progress(title(i, p)), **how
        ):  # fmt: skip
            entry = outcome.entry
            if outcome.error is not None:
                text, code = sentence(outcome.error)
                entry = entry | {"error": " ".join(text.split()), "code": code}
                if len(entries) + 1 < len(slides):
                    _say(f"{title(outcome.number, outcome.slide)}: {entry['error']}")  # hours before the others end
            entries[outcome.number] = entry
    return [entries[i] for i in sorted(entries)]
