"""What is there of a prediction before it runs: nothing, a part, all of it, or something else at its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_peka.config import PredictConfig
from napari_peka.core.errors import NoResult, OutputMismatch, StoreError
from napari_peka.core.geometry import TileTable
from napari_peka.io.kept_tiles import KeptTiles
from napari_peka.io.prediction import Prediction, read_prediction
from napari_peka.io.store import RunStore, differing, identity_of_result, result_path, same_or_raise
from napari_peka.workflows.growing import empty_prediction, show
from napari_peka.workflows.predict import known_embeddings, load_forward, record_of

if TYPE_CHECKING:
    from napari_peka.infer.forward import Forward
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model

#: ``new``: nothing is there, though the encoder may have seen its tiles; ``begun``: a part; ``finished``: all; ``other
#: head``: all, to be read through another gene head; ``other``: a result of something else; ``foreign``: what this
#: package has not written
State = Literal["new", "begun", "finished", "other head", "other", "foreign"]


@dataclass(frozen=True)
class Standing:
    """What is there of a prediction.

    Parameters
    ----------
    state
        See :data:`State`.
    done
        Tiles that need not be computed any more.
    tiles
        Tiles of the whole map.
    why
        What is in the way, as a sentence; empty where nothing is.
    path
        Where the result goes.
    differs
        In what a result that is in the way differs, in the words of a run's identity, such as ``"model"``.
    """

    state: State
    done: int
    tiles: int
    why: str = ""
    path: Path | None = None
    differs: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Tiles that are still to be computed."""
        return self.tiles - self.done


def standing(
    slide: Slide, model: Model, tiles: TileTable, output: Path | str | None, *, config: PredictConfig | None = None,
    forward: Forward | None = None,
) -> Standing:  # fmt: skip
    """Say what of a prediction is there already, or was seen before; nothing is computed, written or locked.

    Parameters
    ----------
    slide, model, output, config, forward
        As :func:`predict` takes them.
    tiles
        From :func:`plan_tiles`.
    """
    n = len(tiles)
    if output is None:
        return Standing("new", 0, n)
    path = result_path(output)
    record = _record(slide, model, tiles, config, forward)
    if known_embeddings(path, record) is not None:
        return Standing("other head", n, n, f"{path.name} was read by another gene head of the same encoder", path)
    store = RunStore(path, tiles, model.head, record, seen_dims=model.seen_dims)
    found: dict[Path, dict[str, Any] | None] = {store.partial: store.unfinished()}
    if path.exists():
        try:
            found = {path: identity_of_result(path), **found}
        except StoreError as e:
            return Standing("foreign", 0, n, str(e), path)
    if found.get(path) == record["identity"]:
        return Standing("finished", n, n, "", path)
    for where, identity in found.items():
        if identity is not None:
            try:
                same_or_raise(identity, record["identity"], where)
            except OutputMismatch as e:
                return Standing("other", 0, n, str(e), path, differing(identity, record["identity"]))
    if found[store.partial] is None:
        return Standing("new", _seen_before(model, tiles, record), n, "", path)
    return Standing("begun", sum(len(b) for b in tiles.blocks() if store.blocks.path(b.index).exists()), n, "", path)


def read_what_is_there(
    slide: Slide, model: Model, tiles: TileTable, output: Path | str, *, config: PredictConfig | None = None,
    forward: Forward | None = None,
) -> Prediction:  # fmt: skip
    """Return as much of a prediction as is there, without computing or writing anything.

    A map of the same encoder is read through the model's gene head. An unfinished one has NaN where tiles are missing,
    and ``record["partial"]`` says how many there are.

    Raises
    ------
    NoResult
        If nothing of this prediction is there.
    """
    from napari_peka.workflows.refit import with_model

    there = standing(slide, model, tiles, output, config=config, forward=forward)
    path = result_path(output)
    if there.state == "finished":
        return read_prediction(path)
    if there.state == "other head":
        return with_model(read_prediction(path), model)
    if there.state != "begun" or not there.done:
        raise NoResult(there.why or f"there is nothing of this map at {path} yet")
    record = _record(slide, model, tiles, config, forward)
    store = RunStore(path, tiles, model.head, record, seen_dims=model.seen_dims)
    live = empty_prediction(tiles, model, record)
    for block in tiles.blocks():
        if (data := store.read_block(block)) is not None:
            show(live, model, slice(block.start, block.stop), data[0])
            live.read_ok[block.start : block.stop] = data[1]
    live.record["partial"] = live.done_in_words
    _ = live.neighbours
    return live


def _seen_before(model: Model, tiles: TileTable, record: dict[str, Any]) -> int:
    """Return how many tiles lie in blocks that the encoder has seen whole on this machine."""
    kept = KeptTiles.of(record, tiles, model.seen_dims)
    if kept is None or not kept.path.exists():
        return 0
    seen = kept.seen(tiles)
    return sum(len(b) for b in tiles.blocks() if seen[b.start : b.stop].all())


def _record(
    slide: Slide, model: Model, tiles: TileTable, config: PredictConfig | None, forward: Forward | None
) -> dict[str, Any]:
    config = config or PredictConfig()
    return record_of(slide, model, tiles, config, forward or load_forward(model, config))
