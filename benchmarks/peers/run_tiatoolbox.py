"""TIAToolbox's DeepFeatureExtractor on a whole slide, with the tissue mask that it finds itself."""

import common
import numpy as np

args = common.options()
encoder = common.encoder(args.encoder)

import torch  # noqa: E402 - torchvision must suit torch first
import zarr  # noqa: E402
from tiatoolbox.models.architecture.vanilla import TimmBackbone  # noqa: E402
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor  # noqa: E402
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig  # noqa: E402
from tiatoolbox.models.models_abc import ModelABC  # noqa: E402


class Backbone(TimmBackbone):
    """A backbone of theirs with an encoder that is given; tiles come as float images of values in 0 to 1."""

    def __init__(self) -> None:
        ModelABC.__init__(self)
        self.feat_extract = encoder
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (common.MEAN, common.STD))

    def forward(self, images):
        return torch.flatten(self.feat_extract((images - self.mean) / self.std), 1)


model = Backbone()
model.preproc_func = lambda image: np.asarray(image, np.float32) / 255
size = (common.TILE_PX, common.TILE_PX)
layout = IOPatchPredictorConfig(
    patch_input_shape=size, stride_shape=size, input_resolutions=[{"resolution": common.MPP, "units": "mpp"}]
)
watch = common.Watch()
extractor = DeepFeatureExtractor(model=model, batch_size=args.batch, num_workers=0, device="cpu", verbose=False)
written = extractor.run(
    images=[args.slide], patch_mode=False, ioconfig=layout, output_type="zarr", save_dir=args.out / "result",
    auto_get_mask=True, overwrite=True,
)  # fmt: skip
watch.stop()
result = zarr.open(str(next(iter(written.values()))), mode="r")
features = next(result[k] for k in ("features", "probabilities") if k in result)
watch.tell(args.out, np.asarray(result["coordinates"])[:, [1, 0]], np.asarray(features))
