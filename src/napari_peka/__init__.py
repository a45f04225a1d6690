"""Where each gene is expressed on an H&E slide, and how far to believe it.

The public face; every name is imported when it is first used, so that ``import napari_peka`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_peka.config import BenchmarkConfig, EvaluateConfig, PredictConfig, RefitConfig, TrainConfig
    from napari_peka.core.errors import PekaError
    from napari_peka.infer.tissue import find_tissue
    from napari_peka.io.figure import write_map
    from napari_peka.io.prediction import Prediction, read_prediction
    from napari_peka.io.regions import read_regions, regions_by_name
    from napari_peka.io.registration import fit_affine
    from napari_peka.io.sample import sample_section, sample_sections, sample_slide
    from napari_peka.io.section import Section, read_section, read_sections
    from napari_peka.io.slide import Slide, open_slide
    from napari_peka.io.slide_list import list_slides
    from napari_peka.io.statistics import (
        compare_regions,
        gene_set_score,
        gene_table,
        known_genes,
        read_gene_sets,
        region_table,
    )
    from napari_peka.models.zoo import load_model
    from napari_peka.training.evaluate import EvaluationReport, read_report
    from napari_peka.trust.slide_qc import SlideCheck, slide_qc_of
    from napari_peka.workflows.benchmark import benchmark
    from napari_peka.workflows.check import Check, check
    from napari_peka.workflows.crew import open_crew
    from napari_peka.workflows.estimate import Estimate, estimate
    from napari_peka.workflows.evaluate import evaluate
    from napari_peka.workflows.many import predict_many
    from napari_peka.workflows.predict import load_forward, plan_tiles, predict
    from napari_peka.workflows.recalibrate import recalibrate
    from napari_peka.workflows.refit import refit, with_model
    from napari_peka.workflows.slide_check import check_slide
    from napari_peka.workflows.train import train

_FACE = {
    "BenchmarkConfig": "config",
    "Check": "workflows.check",
    "Estimate": "workflows.estimate",
    "EvaluateConfig": "config",
    "EvaluationReport": "training.evaluate",
    "PekaError": "core.errors",
    "PredictConfig": "config",
    "Prediction": "io.prediction",
    "RefitConfig": "config",
    "Section": "io.section",
    "Slide": "io.slide",
    "SlideCheck": "trust.slide_qc",
    "TrainConfig": "config",
    "benchmark": "workflows.benchmark",
    "check": "workflows.check",
    "check_slide": "workflows.slide_check",
    "compare_regions": "io.statistics",
    "estimate": "workflows.estimate",
    "evaluate": "workflows.evaluate",
    "find_tissue": "infer.tissue",
    "fit_affine": "io.registration",
    "gene_set_score": "io.statistics",
    "gene_table": "io.statistics",
    "known_genes": "io.statistics",
    "list_slides": "io.slide_list",
    "load_forward": "workflows.predict",
    "load_model": "models.zoo",
    "open_crew": "workflows.crew",
    "open_slide": "io.slide",
    "plan_tiles": "workflows.predict",
    "predict": "workflows.predict",
    "predict_many": "workflows.many",
    "read_prediction": "io.prediction",
    "read_gene_sets": "io.statistics",
    "read_regions": "io.regions",
    "read_report": "training.evaluate",
    "read_section": "io.section",
    "read_sections": "io.section",
    "recalibrate": "workflows.recalibrate",
    "refit": "workflows.refit",
    "region_table": "io.statistics",
    "regions_by_name": "io.regions",
    "sample_section": "io.sample",
    "sample_sections": "io.sample",
    "sample_slide": "io.sample",
    "slide_qc_of": "trust.slide_qc",
    "train": "workflows.train",
    "with_model": "workflows.refit",
    "write_map": "io.figure",
}

__all__ = [
    "BenchmarkConfig", "Check", "Estimate", "EvaluateConfig", "EvaluationReport", "PekaError", "PredictConfig",
    "Prediction", "RefitConfig", "Section", "Slide", "SlideCheck", "TrainConfig", "benchmark", "check", "check_slide",
    "compare_regions", "estimate", "evaluate",
    "find_tissue", "fit_affine", "gene_set_score", "gene_table", "known_genes", "list_slides", "load_forward",
    "load_model",
    "open_crew", "open_slide", "plan_tiles", "predict", "predict_many", "read_gene_sets", "read_prediction",
    "read_regions", "read_report", "read_section", "read_sections", "recalibrate", "refit", "region_table",
    "regions_by_name", "sample_section", "sample_sections", "sample_slide", "slide_qc_of", "train", "with_model",
    "write_map",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-peka")
    if name in _FACE:
        return getattr(import_module(f"napari_peka.{_FACE[name]}"), name)
    raise AttributeError(f"module 'napari_peka' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE, "__version__"])
