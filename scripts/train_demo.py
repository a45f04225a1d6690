#!/usr/bin/env python3
"""Make the embedded demo model from real paired ST sections, with the package's own training.

    python scripts/train_demo.py DATA [-o demo-model] [--work DIR] [--set NAME=VALUE ...]

DATA is a folder with the her2st sections of patient C (Andersson et al., Nat Commun 2021, CC BY 4.0): C2.jpg,
C2.tsv.gz, C2_selection.tsv and so on. Each section is left out in turn to judge the recipe; the model that is shipped
is then trained on all of them, and its card says so; ``-o src/napari_peka/assets/demo`` replaces it. How the recipe was
found, and what did not help: docs/results.md.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml
from safetensors.numpy import load_file

from napari_peka.config import TrainConfig
from napari_peka.console import console_progress
from napari_peka.io.section import read_sections
from napari_peka.models.bundle import TENSOR_FILE, save_bundle
from napari_peka.workflows.train import train

#: found on sections left out in turn (docs/results.md)
RECIPE = {
    "encoder": "dinov2-vits14-demo",
    "adapter": "none",
    "blocks": [3, 6],
    "pooling": "mean+std",
    "rotations": 4,
    "context_um": 300,
    "n_components": None,
    "depth_power": 0.5,
    "target_rank": 20,
    "min_detected": 0.2,
    "hold_out": "section",
    "precision": "fp32",
}


def main() -> None:
    args = arguments()
    settings = RECIPE | {k: yaml.safe_load(v) for k, v in (pair.split("=", 1) for pair in args.set)}
    config = TrainConfig(**settings)
    work = args.work / "demo"
    shutil.rmtree(work, ignore_errors=True)
    sections = read_sections(sorted(args.data.glob("*.tsv.gz")), patient="C")
    with console_progress("demo") as progress:
        made = train(sections, config, output=work, resume=True, progress=progress)
    tensors = load_file(work / TENSOR_FILE)
    how = "Frozen" if config.adapter == "none" else f"Adapted ({config.adapter})"
    spec = made.spec.model_copy(
        update={
            "name": "demo",
            "description": f"Demonstration: HER2-positive breast cancer, one patient. {how} DINOv2 ViT-S/14, linear "
            "head. It has seen one patient and one laboratory's stain.",
            "licence": "weights Apache-2.0 (DINOv2), what was trained CC BY 4.0 (on her2st)",
            "training": {
                "data": "her2st patient C, Andersson et al. 2021, doi:10.1038/s41467-021-26271-2, CC BY 4.0.",
                "tissue": "breast",
                "made_by": "python scripts/train_demo.py DATA",
                **made.spec.training,
            },
        }
    )
    model = save_bundle(args.output, spec, tensors)
    summary = model.spec.training["summary"]
    print(f"PCC, 50 most variable genes: {summary['pcc_hvg50']['mean']:.3f}; report: {work / 'report' / 'report.html'}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-model"))
    parser.add_argument("--work", type=Path, default=Path("napari-peka-training"), help="for report and checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="other than RECIPE's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
