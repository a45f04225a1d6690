"""The command line on one slide: what it is, and whether a model can be believed on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_peka.cli_output import write_result
from napari_peka.core.errors import SettingError


def info(
    slide: Annotated[Path, typer.Argument(help="A whole-slide image.", readable=False)],
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of the slide, when the file has none or a wrong one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Say too whether this model can be believed on it: stain, focus, tissue, organ.")
    ] = None,
    organ: Annotated[str | None, typer.Option(help="With --model: of which organ the slide is.")] = None,
    stain: Annotated[
        str, typer.Option(help="With --model: what normalising the stain by macenko or reinhard would bring.")
    ] = "none",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")
    ] = False,
) -> None:
    """Say what a slide is: size, µm per pixel and where they came from, levels, reader; with a model, its checks."""
    from napari_peka.config import PredictConfig
    from napari_peka.console import check_text, console_progress, info_text
    from napari_peka.io.slide import open_slide
    from napari_peka.models.zoo import load_model
    from napari_peka.workflows.slide_check import check_slide, stain_effect

    config = PredictConfig(stain=stain, organ=organ)
    if model is None and (organ is not None or stain != "none"):
        raise SettingError("--organ and --stain are about a model: give --model too")
    loaded = None if model is None else load_model(model)
    with open_slide(slide, mpp=mpp) as opened, console_progress(slide.name) as progress:
        data, text = opened.info(), ""
        if loaded is not None:
            check = check_slide(opened, loaded, config=config, progress=progress)
            if stain != "none":
                check = check.with_lines([stain_effect(opened, loaded, config, progress=progress)])
            data = opened.info() | check.as_dict()
            text = "\n\n" + check_text(data)
    write_result(data, as_json, info_text(data) + text)
