#!/usr/bin/env python3
"""Draw the picture of docs/trust.md: a real section, a part of it blurred and marked with a pen, and what the map says.

    python scripts/make_trust_picture.py IMAGE --mpp F --model MODEL -o docs/img/trust.png [--gene ERBB2]

IMAGE is a section that MODEL has not seen (benchmarks/trust.py leaves such models in its folder). A disc of it is put
out of focus and a pen is drawn across; nothing else is done to it, and the map is that of the package.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageDraw
from scipy import ndimage

import napari_peka as peka

Image.MAX_IMAGE_PIXELS = None
#: µm: how far out of focus, and how wide the disc and the pen are
BLUR, DISC, PEN = 3.0, 1800.0, 450.0
INK = (30, 60, 140)


def main() -> None:
    args = arguments()
    picture = np.asarray(Image.open(args.image).convert("RGB")).copy()
    spoil(picture, args.mpp)
    model = peka.load_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{args.image.stem} with blur and pen.tif"
        tifffile.imwrite(path, picture, tile=(256, 256), photometric="rgb", compression="jpeg")
        with peka.open_slide(path, mpp=args.mpp) as slide:
            config = peka.PredictConfig(stride_px=args.stride_px)
            done = peka.predict(slide, model, config=config)
            peka.write_map(done, slide, args.gene, args.output)
    print(f"{(done.ood >= 99).mean():.1%} of {len(done.tiles)} tiles are hatched")


def spoil(picture: np.ndarray, mpp: float) -> None:
    """Blur a disc in the upper middle of the tissue, and draw a stroke through its lower half."""
    small = picture[::16, ::16].astype(float)
    tissue = ndimage.binary_opening(np.ptp(small, axis=2) > 25, iterations=3)
    y, x = np.argwhere(tissue).T * 16
    (y0, y1), (x0, x1) = (np.percentile(v, (5, 95)) for v in (y, x))
    cy, cx, r = y0 + 0.3 * (y1 - y0), (x0 + x1) / 2, DISC / 2 / mpp
    part = np.s_[max(0, int(cy - r)) : int(cy + r), max(0, int(cx - r)) : int(cx + r)]
    yy, xx = np.ogrid[part]
    inside = (yy - cy) ** 2 + (xx - cx) ** 2 < r**2
    blurred = ndimage.gaussian_filter(picture[part].astype(np.float32), (BLUR / mpp, BLUR / mpp, 0))
    picture[part] = np.where(inside[..., None], blurred, picture[part])
    mask = Image.new("L", picture.shape[1::-1])
    line = [(x0, y0 + 0.62 * (y1 - y0)), ((x0 + x1) / 2, y0 + 0.7 * (y1 - y0)), (x1, y0 + 0.64 * (y1 - y0))]
    ImageDraw.Draw(mask).line(line, fill=205, width=round(PEN / mpp), joint="curve")
    opaque = np.asarray(mask, np.float32)[..., None] / 255
    picture[:] = (picture * (1 - opaque) + np.array(INK) * opaque).round()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gene", default="ERBB2")
    parser.add_argument("--stride-px", type=int, default=112)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
