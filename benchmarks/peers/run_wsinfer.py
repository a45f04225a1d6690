"""WSInfer by its Python functions, since its command line asks a model zoo on the network when it is imported."""

import os

os.environ["WSINFER_FORCE_CPU"] = "1"

import common
import numpy as np
import pandas as pd
import torch

args = common.options()
encoder = common.encoder(args.encoder)

from wsinfer.modellib.models import LocalModelTorchScript  # noqa: E402 - torchvision must suit torch first
from wsinfer.modellib.run_inference import run_inference  # noqa: E402
from wsinfer.patchlib import segment_and_patch_directory_of_slides  # noqa: E402
from wsinfer.wsi import set_backend  # noqa: E402
from wsinfer_zoo.client import ModelConfiguration, TransformConfigurationItem  # noqa: E402

set_backend("openslide")
slides, results, weights = (args.out / name for name in ("slides", "results", "model.pt"))
slides.mkdir()
(slides / "slide.tif").symlink_to(args.slide.resolve())
with torch.no_grad():
    blank = torch.zeros(args.batch, 3, common.TILE_PX, common.TILE_PX)
    torch.jit.save(torch.jit.trace(encoder, blank), weights)
    names = [f"{i}" for i in range(encoder(blank[:1]).shape[1])]
steps = [("ToTensor", None), ("Normalize", {"mean": common.MEAN, "std": common.STD})]
config = ModelConfiguration(
    architecture="encoder", num_classes=len(names), class_names=names, patch_size_pixels=common.TILE_PX,
    spacing_um_px=common.MPP, transform=[TransformConfigurationItem(name=n, arguments=a) for n, a in steps],
)  # fmt: skip
watch = common.Watch()
segment_and_patch_directory_of_slides(
    slides, results, patch_size_px=common.TILE_PX, patch_spacing_um_px=common.MPP
)  # fmt: skip
model = LocalModelTorchScript(config=config, model_path=str(weights))
run_inference(slides, results, model, batch_size=args.batch, num_workers=min(os.cpu_count() or 1, 8))
watch.stop()
table = pd.read_csv(results / "model-outputs-csv" / "slide.csv")
# it writes softmax(embedding): the logarithm is the embedding but for a constant, which is its mean, 0 after LayerNorm
logarithm = np.log(table[[f"prob_{n}" for n in names]].to_numpy())
watch.tell(args.out, table[["miny", "minx"]].to_numpy(), logarithm - logarithm.mean(1, keepdims=True))
