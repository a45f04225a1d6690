"""napari-peka by its public functions, with a bundle whose encoder is the one that all tools run."""

import os

import common
import numpy as np

args = common.options(backend="torch", home=None)
os.environ |= {"NAPARI_PEKA_MODELS": f"{args.home}/models", "NAPARI_PEKA_CACHE": f"{args.home}/cache"}
os.environ["NAPARI_PEKA_REUSE"] = "0"  # each round computes all

# imported by the package where they are needed; imports are left out for all tools
import anndata  # noqa: E402, F401
import skimage.color  # noqa: E402
import skimage.filters  # noqa: E402, F401

import napari_peka as peka  # noqa: E402 - its folders must be said first

ENCODER = f"timm:{common.ARCH}"


def bundle(dims: int):
    """Write a model of one gene on the encoder, and the encoder's weights where the package looks for them."""
    from safetensors.torch import save_file

    from napari_peka.models.bundle import save_bundle
    from napari_peka.models.folder import encoder_folder
    from napari_peka.models.spec import BundleSpec

    if args.encoder == "vit" and not (folder := encoder_folder(ENCODER)).exists():
        folder.mkdir(parents=True)
        save_file(common.encoder("vit").state_dict(), folder / "model.safetensors")
    spec = BundleSpec(
        schema=1, name="one-gene", encoder={"name": ENCODER},
        preprocessing={"tile_px": common.TILE_PX, "mpp": common.MPP, "mean": common.MEAN, "std": common.STD},
        head={"n_dims": dims, "genes": ["A"], "unit": "log1p CP10K"},
    )  # fmt: skip
    tensors = {"head.weights": np.ones((dims, 1), np.float32), "head.bias": np.zeros(1, np.float32)}
    return save_bundle(args.out / "model", spec, tensors)


def nothing(model, config):
    """Return a Forward that normalises tiles as a model does, and does no more."""
    from napari_peka.infer.forward import Forward
    from napari_peka.models.student import Student

    usual = peka.load_forward(model, config.model_copy(update={"backend": "torch"}))
    build = lambda: Student(common.encoder("noop"), common.MEAN, common.STD)  # noqa: E731
    return Forward(build, usual.device, usual.dtype, args.batch, usual.digest)


model = bundle(384 if args.encoder == "vit" else 3)
config = peka.PredictConfig(device="cpu", precision=args.precision, backend=args.backend)
forward = nothing(model, config) if args.encoder == "noop" else peka.load_forward(model, config, offline=True)
_ = forward.module
if args.only_load:
    raise SystemExit
watch = common.Watch()
with peka.open_slide(args.slide) as slide:
    done = peka.predict(slide, model, output=args.out / "map.peka.zarr", config=config, forward=forward)
watch.stop()
watch.tell(
    args.out, done.tiles.centre_yx - common.TILE_PX / 2 * common.MPP / np.array(done.tiles.slide_mpp), done.embeddings
)
