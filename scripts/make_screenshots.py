#!/usr/bin/env python3
"""Take the documentation's pictures of the docks: a real window, clicks on what is seen in it, nothing staged.

    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/make_screenshots.py [--st FOLDER] [--only NAME ...]

Each picture is taken in napari's dark and light theme: ``NAME.png`` and ``NAME-light.png``. By default of what a clone
has. FOLDER holds the sections of patient C of her2st (Andersson et al., Nat Commun 2021, CC BY 4.0): C2 … C5, each as
.jpg, .tsv.gz and _selection.tsv; a model learns from all but C5, and C5 is shown. A slide that a model was fitted on is
refused. Models and maps are kept in the folder ``--work`` for the next time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
NAMES = ("slide", "predict", "explore", "compare", "regions", "sets", "train", "check", "filling")
sys.path[:0] = [str(REPO / "scripts"), str(REPO / "tests")]


def main() -> None:
    args = arguments()
    output, folder = args.output.resolve(), args.st and args.st.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)  # the folders that are seen in the pictures are nobody's
    os.environ |= {
        "NAPARI_PEKA_MODELS": "models",
        "NAPARI_PEKA_REUSE": "0",  # a map is to be seen while it fills in, and not taken from the cache
        "NAPARI_CONFIG": str(Path("napari.yaml").resolve()),
    }

    # not before: napari reads its settings, and Qt its screen, as they are then
    from screenshots import filling, stories
    from screenshots.cases import embedded, her2st
    from screenshots.stage import Stage

    work = Path()
    case = her2st(folder, work) if folder else embedded(work)
    for name in args.only or NAMES:
        with Stage(output) as stage:
            getattr(filling if name == "filling" else stories, name)(stage, case, work)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--st", type=Path, metavar="FOLDER", help="the sections of her2st, patient C")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--work", type=Path, default=Path("napari-peka-training/screenshots"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/img"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
