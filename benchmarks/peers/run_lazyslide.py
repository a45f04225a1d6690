"""LazySlide, as its documentation has it: open, find tissue, tile, extract features, write."""

import common
import numpy as np

args = common.options()
encoder = common.encoder(args.encoder)

import lazyslide as zs  # noqa: E402 - torchvision must suit torch first
import torch  # noqa: E402
import wsidata  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

transform = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(common.MEAN, common.STD)]
)  # fmt: skip
watch = common.Watch()
slide = wsidata.open_wsi(args.slide, store=str(args.out / "slide.zarr"))
zs.pp.find_tissues(slide)
zs.pp.tile_tissues(slide, common.TILE_PX, mpp=common.MPP)
zs.tl.feature_extraction(
    slide, model=encoder, model_name="encoder", transform=transform, device="cpu", batch_size=args.batch,
    num_workers=0, amp=args.precision == "bf16", autocast_dtype=torch.bfloat16, pbar=False,
)  # fmt: skip
slide.write()
watch.stop()
bounds = slide.shapes["tiles"].geometry.bounds
features = slide.fetch.features_anndata("encoder").X
watch.tell(args.out, bounds[["miny", "minx"]].to_numpy(), np.asarray(features))
