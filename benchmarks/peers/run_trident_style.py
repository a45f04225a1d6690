"""A loop in the manner of TRIDENT, which no package registry has: OpenSlide, a DataLoader, autocast, HDF5."""

import os

import common
import cv2
import h5py
import numpy as np
import openslide

args = common.options()
encoder = common.encoder(args.encoder)

import torch  # noqa: E402
from torchvision import transforms  # noqa: E402

transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(common.MEAN, common.STD)])


class Tiles(torch.utils.data.Dataset):
    """Tiles read one by one from the slide, which each worker opens for itself."""

    def __init__(self, left_xy: np.ndarray) -> None:
        self.left_xy, self._slide = left_xy, None

    def __len__(self) -> int:
        return len(self.left_xy)

    def __getitem__(self, i: int):
        self._slide = self._slide or openslide.OpenSlide(args.slide)
        tile = self._slide.read_region(tuple(self.left_xy[i].tolist()), 0, (common.TILE_PX, common.TILE_PX))
        return transform(tile.convert("RGB")), i


watch = common.Watch()
with openslide.OpenSlide(args.slide) as slide:
    overview = np.asarray(slide.get_thumbnail((1024, 1024)).convert("RGB"))
    width, height = slide.dimensions
saturation = cv2.medianBlur(cv2.cvtColor(overview, cv2.COLOR_RGB2HSV)[..., 1], 7)
tissue = cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)[1] > 0
side = common.TILE_PX
left_yx = np.mgrid[0 : height - side + 1 : side, 0 : width - side + 1 : side].reshape(2, -1).T
middle = ((left_yx + side / 2) * overview.shape[1] / width).astype(int)
left_yx = left_yx[tissue[middle[:, 0], middle[:, 1]]]
workers = max(1, int(0.75 * (os.cpu_count() or 1)))  # as it has them
loader = torch.utils.data.DataLoader(Tiles(left_yx[:, ::-1]), batch_size=args.batch, num_workers=workers)
features = []
with torch.inference_mode():
    for images, _ in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            features.append(encoder(images).float().numpy())
with h5py.File(args.out / "features.h5", "w") as file:
    file["features"], file["coords"] = np.concatenate(features), left_yx[:, ::-1]
watch.stop()
watch.tell(args.out, left_yx, np.concatenate(features))
