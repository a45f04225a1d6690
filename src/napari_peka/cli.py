"""The command line: options, console progress, exit codes. The work is done by the rooms below.

Exit codes: 0 all done; 2 wrong usage or bad input; 1 anything else; 130 interrupted. With ``--json`` standard output
holds one JSON document and nothing else; progress and messages go to standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_peka.core.errors import DeviceError, EncoderUnavailable, PekaError, SettingError, StoreError
from napari_peka.core.progress import Cancelled

if TYPE_CHECKING:
    from napari_peka.config import PredictConfig
    from napari_peka.io.store import Prediction

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Where each gene is expressed on your own H&E slide, and how far to believe it. Research use only.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Mpp = Annotated[float | None, typer.Option(help="µm per pixel of the slide, when the file has none or a wrong one.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]

#: a known gene that the demo model predicts well
DEMO_GENE = "ERBB2"
#: a quarter of the demo model's tile: the embedded slide is 1.5 mm high, whole tiles would be a coarse map
DEMO_STRIDE_PX = 56
#: bad input is 2; these come from the machine, not from what was asked
_MACHINE = (StoreError, DeviceError, EncoderUnavailable)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _plain_streams()
    try:
        code = app(args=args, prog_name="napari-peka", standalone_mode=False) or 0
    except (KeyboardInterrupt, Cancelled, typer.Abort):
        code = _fail("interrupted; the same command goes on from here", 130)
    except PekaError as e:
        code = _fail(str(e), exit_code(e))
    except Exception as e:  # noqa: BLE001 - a person never gets a traceback
        code = _usage_or_bug(e)
    sys.exit(code)


def exit_code(e: BaseException) -> int:
    """Return the exit code for an error: 2 for bad input, 1 for what the machine lacks."""
    return 1 if isinstance(e, _MACHINE) and not isinstance(e, _mismatch()) else 2


def _mismatch() -> type[PekaError]:
    from napari_peka.core.errors import OutputMismatch

    return OutputMismatch


def _usage_or_bug(e: Exception) -> int:
    if hasattr(e, "format_message") and hasattr(e, "exit_code"):  # click's own usage errors
        return _fail(e.format_message(), 2)
    import os

    if os.environ.get("NAPARI_PEKA_DEBUG"):
        raise e
    text = " ".join(str(e).split())
    return _fail(f"{type(e).__name__}: {text} (unexpected; NAPARI_PEKA_DEBUG=1 shows where)", 1)


def _fail(text: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _plain_streams() -> None:
    for stream in (sys.stdout, sys.stderr):  # a console in another encoding must not end a run over a µ
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _out(data: Any, as_json: bool, text: str) -> None:
    print(json.dumps(data, indent=1, allow_nan=False) if as_json else text)  # noqa: T201


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
    from napari_peka.config import PredictConfig, checked
    from napari_peka.io.sample import sample_slide

    config = checked(PredictConfig, device=device, stride_px=DEMO_STRIDE_PX)
    entry = _predict_one(sample_slide(), _model("demo"), output, [DEMO_GENE], config=config)
    if "error" in entry:
        raise SettingError(entry["error"])
    _out(entry, as_json, f"map      {entry['output']}\npicture  {entry['pictures'][0]}")
    if open_napari:
        _open_napari(sample_slide(), entry["output"], DEMO_GENE)


@app.command()
def info(
    slide: Annotated[Path, typer.Argument(help="A whole-slide image.")],
    mpp: Mpp = None,
    as_json: Json = False,
) -> None:
    """Say what a slide is: size, µm per pixel and where they came from, levels, reader."""
    from napari_peka.io.slide import open_slide

    with open_slide(slide, mpp=mpp) as opened:
        data = opened.info()
    lines = [f"{k:<12} {v}" for k, v in data.items() if k not in ("warnings", "levels")]
    lines += [f"level {i:<6} {v}" for i, v in enumerate(data["levels"])]
    lines += [f"warning      {w}" for w in data["warnings"]]
    _out(data, as_json, "\n".join(lines))


@app.command()
def predict(
    slides: Annotated[list[Path], typer.Argument(help="Whole-slide images.")],
    model: Annotated[str, typer.Option(help="demo, a bundle's folder or .zip, its name, or a hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    genes: Annotated[str | None, typer.Option(help="Genes to draw as PNG, separated by commas.")] = None,
    roi: Annotated[
        Path | None, typer.Option(help="GeoJSON of a region in level-0 pixels, as QuPath writes it.")
    ] = None,
    mpp: Mpp = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Tiles a forward pass.")] = None,
    stride_px: Annotated[int | None, typer.Option(help="Distance of tiles in px at the model's mpp.")] = None,
    min_tissue: Annotated[float, typer.Option(help="Least share of a tile that must be tissue.")] = 0.25,
    overwrite: Annotated[bool, typer.Option(help="Replace a result of another slide, model or setting.")] = False,
    as_json: Json = False,
) -> None:
    """Predict the expression maps of slides. Interrupted, the same command goes on where it stopped."""
    from napari_peka.config import PredictConfig, checked

    config = checked(
        PredictConfig,
        device=device,
        precision=precision,
        batch_size=batch_size,
        stride_px=stride_px,
        min_tissue=min_tissue,
    )
    loaded = _model(model)
    wanted = [g.strip() for g in (genes or "").split(",") if g.strip()]
    for gene in wanted:
        loaded.head.index(gene)  # an unknown gene is said before hours of work
    same = {s.name for s in slides if sum(_result_name(s) == _result_name(t) for t in slides) > 1}
    if same:
        raise SettingError(f"two slides would write the same result ({', '.join(sorted(same))}); predict them apart")
    entries = [
        _predict_one(s, loaded, output, wanted, roi=roi, mpp=mpp, config=config, overwrite=overwrite) for s in slides
    ]
    lines = [
        f"{e['slide']}: error: {e['error']}"
        if "error" in e
        else f"{e['slide']}: {e['tiles']} tiles, {e['unreadable_tiles']} unreadable, {e['seconds']} s -> {e['output']}"
        for e in entries
    ]
    _out([{k: v for k, v in e.items() if k != "code"} for e in entries], as_json, "\n".join(lines))
    failed = [e for e in entries if "error" in e]
    if failed:
        code = max(e["code"] for e in failed) if all(e["code"] == 2 for e in failed) else 1
        more = f" ({len(failed)} of {len(entries)} slides failed)" if len(entries) > 1 else ""
        raise typer.Exit(_fail(failed[0]["error"] + more, code))


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="A model or an encoder.")] = None, as_json: Json = False
) -> None:
    """List models and encoders, or show one."""
    from napari_peka.models.zoo import listing, show

    if name is None:
        data = listing()
        rows = [f"{m['name']:<28} {m['genes']:>6} genes  {m['encoder']}" for m in data["models"]]
        rows += ["", f"encoders (models folder: {data['folder']})"]
        rows += [
            f"{e['name']:<28} {e['dim']:>6} dims   {'gated' if e['gated'] else 'open '}  {e['licence']}"
            for e in data["encoders"]
        ]
        _out(data, as_json, "\n".join(rows))
    else:
        data = show(name)
        _out(data, as_json, "\n".join(f"{k:<14} {v}" for k, v in data.items()))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, with the mend for what it cannot."""
    from napari_peka.doctor import examine

    checks = examine(_model)
    _out(
        checks,
        as_json,
        "\n".join(f"{'ok ' if c['ok'] else '-- '} {c['name']:<12} {c['text']}" for c in checks),
    )


def _open_napari(slide: Path, result: str, gene: str) -> None:
    """Open napari in a process of its own and wait until it is closed: this floor knows nothing of windows."""
    import subprocess

    command = [sys.executable, "-m", "napari_peka.gui.launch", str(slide), result, gene]
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)


def _model(name: str) -> Any:
    from napari_peka.models.zoo import load_model

    return load_model(name)


def _result_name(slide: Path) -> str:
    return f"{slide.stem}.peka.zarr"


def _predict_one(
    path: Path, model: Any, output: Path, genes: list[str], *, roi: Path | None = None, mpp: float | None = None,
    config: PredictConfig | None = None, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Predict one slide; what is wrong with it comes back as its entry's ``error`` and does not stop the others."""
    from napari_peka.config import PredictConfig
    from napari_peka.console import console_progress
    from napari_peka.core.files import make_folder
    from napari_peka.io.figure import write_map
    from napari_peka.io.regions import read_regions
    from napari_peka.io.slide import open_slide
    from napari_peka.workflows import predict as run

    entry: dict[str, Any] = {"slide": str(path)}
    try:
        region = read_regions(roi) if roi else None
        with open_slide(path, mpp=mpp) as slide, console_progress(path.name) as progress:
            make_folder(output)
            target = output / _result_name(path)
            prediction: Prediction = run(
                slide, model, output=target, region=region, config=config or PredictConfig(),
                overwrite=overwrite, progress=progress,
            )  # fmt: skip
            progress.stage("drawing")
            pictures = [str(write_map(prediction, slide, g, output / f"{path.stem}.{g}.png")) for g in genes]
            done = prediction.record["run"]
            entry |= {
                "output": str(target),
                "tiles": done["tiles"],
                "unreadable_tiles": prediction.n_unreadable,
                "seconds": done["seconds"],
                "tiles_per_second": done["tiles_per_second"],
                "resumed_tiles": done["resumed_tiles"],
                "warnings": [*slide.warnings, *progress.notes],
                "pictures": pictures,
            }
    except PekaError as e:
        entry |= {"error": str(e), "code": exit_code(e)}
    return entry
