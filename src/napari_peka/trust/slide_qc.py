"""Whether a slide is one that a model can be believed on: a line a question, each with what to do.

What is asked of pixels is asked in comparison with the training spots, of which a bundle keeps percentiles: colours
(``reference.colour``, ``reference.hue``) and sharpness (``reference.focus``). Numpy and scikit-image only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import OUTSIDE
from napari_peka.io.slide import PLAUSIBLE_MPP
from napari_peka.io.trust import percent

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction

FloatArray = npt.NDArray[np.floating]
Float32 = npt.NDArray[np.float32]
State = Literal["good", "unknown", "doubtful", "bad"]

COLOUR, HUE, FOCUS = "reference.colour", "reference.hue", "reference.focus"
#: where a result's record holds what was known of its slide
SLIDE_CHECK = "slide_check"
#: from good to bad; what is not known is no reason for doubt, and is said
STATES: tuple[State, ...] = ("good", "unknown", "doubtful", "bad")
#: share of the tiles outside what 98 of 100 training spots are: from here on the slide is doubtful, or bad. Of colours
#: it is 1 to 18 % of the spots of a section that was left out of a training, and 2 to 6 % of the tiles of its slide; on
#: slides of two other laboratories 92 and 100 %
SOME, MOST = 0.25, 0.75
#: states that speak against a slide
AGAINST: tuple[State, ...] = ("doubtful", "bad")
#: share of the tiles unlike the training data, or out of focus, from which on that is said: the tissue's rim alone is
#: some 5 % of the former, and of sections that were left out of a training at most 2 % are out of focus
NOTICED = 0.1
#: percentiles of the training spots within which a tile is like them
WITHIN = (1, 99)
#: grey levels by which a colour may lie beyond: fewer are not seen, and one more section of a laboratory brings them
MARGIN = 5.0
#: sharpness below which a tile is blurred where the model keeps none of its training spots: at the model's pixels sharp
#: tiles have 0.55 to 0.75; blurred by a Gaussian of 1.4, 3 and 6 px they have 0.5, 0.3 and 0.12
BLURRED = 0.5
#: a slide this many times coarser than what the model reads is enlarged, and shows the model a blurred picture
ENLARGED = 1.5
#: fewer tiles say little of a slide
FEW_TILES = 10
_NAMES = {
    "resolution": "µm per pixel", "tissue": "tissue", "stain": "stain", "focus": "focus", "reading": "unreadable parts",
    "organ": "organ", "likeness": "unlike tiles",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The answer to one question.

    Parameters
    ----------
    key
        ``resolution``, ``tissue``, ``stain``, ``focus``, ``reading``, ``organ`` or ``likeness``.
    state
        ``good``, ``unknown``, ``doubtful`` or ``bad``.
    text
        One sentence.
    mend
        What to do; empty where nothing need be done.
    """

    key: str
    state: State
    text: str
    mend: str = ""


@dataclass(frozen=True)
class SlideCheck:
    """What was found out of a slide.

    Parameters
    ----------
    lines
        An answer a question.
    """

    lines: tuple[Line, ...]

    def __getitem__(self, key: str) -> Line:
        return next(line for line in self.lines if line.key == key)

    @property
    def state(self) -> State:
        """The worst state of the lines."""
        return max((line.state for line in self.lines), key=STATES.index, default="unknown")

    @property
    def worst(self) -> tuple[Line, ...]:
        """The lines of the worst state."""
        return tuple(line for line in self.lines if line.state == self.state)

    @property
    def against(self) -> tuple[Line, ...]:
        """The lines that speak against the slide."""
        return tuple(line for line in self.lines if line.state in AGAINST)

    @property
    def verdict(self) -> str:
        """The worst of it in one sentence."""
        worst = self.worst
        names = ", ".join(_NAMES.get(line.key, line.key) for line in worst)
        if self.state == "good":
            return "Nothing was found that speaks against this slide."
        if self.state == "unknown":
            return f"Nothing was found that speaks against this slide; not known: {names}."
        said = worst[0].text[:1].lower() + worst[0].text[1:]
        return f"{'Doubtful' if self.state == 'doubtful' else 'Not to be relied on'} ({names}): {said}"

    def with_lines(self, lines: Iterable[Line]) -> SlideCheck:
        """Return the check with these lines in place of those of the same keys, or after them."""
        new = {line.key: line for line in lines}
        kept = {line.key: line for line in self.lines}
        return SlideCheck(tuple((kept | new).values()))

    def as_dict(self) -> dict[str, Any]:
        """Return ``verdict`` and ``checks``, fit for JSON."""
        return {"verdict": self.verdict, "checks": [asdict(line) for line in self.lines]}


def check_of(data: Mapping[str, Any]) -> SlideCheck:
    """Return the check that :meth:`SlideCheck.as_dict` wrote, as far as this version understands it."""
    names = ("key", "state", "text", "mend")
    said = [{k: str(line.get(k, "")) for k in names} for line in data.get("checks", ()) if isinstance(line, Mapping)]
    return SlideCheck(tuple(Line(**line) for line in said if line["state"] in STATES))  # type: ignore[arg-type]


def colour_reference(features: FloatArray) -> dict[str, Float32]:
    """Return what a bundle keeps of the training spots' colours.

    Parameters
    ----------
    features
        Mean and standard deviation of each tile's red, green and blue, ``(n, 6)``; rows that are not finite are left
        out.

    Returns
    -------
    dict
        Percentiles 0 to 100: ``reference.colour (101, 6)`` of each of the six, ``reference.hue (101, 3)`` of red less
        green, blue less green and blue less red: a hue is no single channel's. Empty where no row is finite.
    """
    rows = np.asarray(features, np.float64)
    rows = rows[np.isfinite(rows).all(1)]
    if not len(rows):
        return {}
    kept = {COLOUR: rows, HUE: _hue(rows)}
    return {name: np.percentile(x, np.arange(101), axis=0).astype(np.float32) for name, x in kept.items()}


def _hue(features: FloatArray) -> FloatArray:
    red, green, blue = np.asarray(features, np.float64).T[:3]
    return np.column_stack([red - green, blue - green, blue - red])


def focus_reference(sharp: FloatArray) -> dict[str, Float32]:
    """Return what a bundle keeps of the training tiles' :func:`sharpness`: ``reference.focus (101,)``, percentiles."""
    known = np.asarray(sharp, np.float64)
    known = known[np.isfinite(known)]
    return {FOCUS: np.percentile(known, np.arange(101)).astype(np.float32)} if len(known) else {}


def sharpness(tiles: npt.NDArray[np.uint8]) -> Float32:
    """Return how sharp tiles are, ``(n,)``, 0 to 1: how much of their edges is lost when they are blurred once more.

    Parameters
    ----------
    tiles
        uint8, ``(n, S, S, 3)``.

    Returns
    -------
    array
        NaN for a tile without any edge.

    Notes
    -----
    One less the blur metric of Crété et al. (The blur effect, Proc. SPIE 6492, 2007), as scikit-image has it. It is a
    ratio, so it changes with focus and hardly with how strong the stain is or how many nuclei there are; the variance
    of the Laplacian, the usual measure, changes with all three.
    """
    from skimage.measure import blur_effect

    out = np.full(len(tiles), np.nan, np.float32)
    for i, tile in enumerate(tiles):
        if np.ptp(tile):
            out[i] = 1 - blur_effect(tile, channel_axis=-1)
    return out


def resolution_line(mpp: tuple[float, float] | None, source: str, model_mpp: float) -> Line:
    """Say whether a slide's pixels are as large as a model needs them.

    Parameters
    ----------
    mpp
        µm per pixel (y, x); None: nobody says.
    source
        Who says.
    model_mpp
        What the model reads.
    """
    if mpp is None:
        return Line(
            "resolution", "bad", "How large a pixel is, is not known, so nothing can be predicted.",
            "give the µm per pixel (--mpp or mpp=)",
        )  # fmt: skip
    coarse = max(mpp)
    who = "as was given" if source == "given" else source
    said = f"{coarse:.4g} µm per pixel ({who}); the model reads {model_mpp:.4g}"
    low, high = PLAUSIBLE_MPP
    if coarse > ENLARGED * model_mpp:
        return Line(
            "resolution", "bad", f"{said}: it sees an enlarged, blurred picture, and its values mean little.",
            f"take a scan of {model_mpp:.2g} µm per pixel or finer, or correct the µm per pixel (--mpp or mpp=)",
        )  # fmt: skip
    if not low <= min(mpp) <= coarse <= high:
        return Line(
            "resolution", "doubtful", f"{said}: a microscope's scan has {low} to {high}.",
            "correct the µm per pixel (--mpp or mpp=)",
        )  # fmt: skip
    return Line("resolution", "good", f"{said}.")


def tissue_line(share: float | None, tiles: int) -> Line:
    """Say how much tissue was found: its share of the slide (None: it was not looked for), and the number of tiles."""
    count = f"{tiles:,} tile{'s' * (tiles != 1)}"
    if tiles == 0:
        return Line(
            "tissue", "bad", "No tissue was found.",
            "check that this is an H&E slide, or draw a region and count every tile of it (find_tissue off)",
        )  # fmt: skip
    said = f"{count} of tissue, which was not looked for" if share is None else f"{percent(share)} tissue, {count}"
    if tiles < FEW_TILES:
        return Line("tissue", "doubtful", f"{said}: so few say little.", "look whether the tissue was found rightly")
    return Line("tissue", "good", f"{said}.")


def stain_line(
    colours: FloatArray, reference: FloatArray | None, hue: FloatArray | None = None, *, after: str = "",
    can: bool = False,
) -> Line:  # fmt: skip
    """Say whether a slide's tiles are coloured as the training spots.

    Parameters
    ----------
    colours
        Of sampled tiles, as :func:`colour_reference` takes them, ``(n, 6)``.
    reference, hue
        ``reference.colour`` and ``reference.hue`` of the bundle; None where it has none.
    after
        What was done to the stain before; empty: nothing.
    can
        Whether the stain can be normalised towards that of this model.
    """
    if reference is None:
        return Line("stain", "unknown", "The model does not say what colours it was trained on.",
                    "train it again with this version to know")  # fmt: skip
    if not len(colours):
        return Line("stain", "unknown", "No tile could be looked at, so nothing is known of the stain.")
    means, known = np.asarray(colours, np.float64)[:, :3], np.asarray(reference, np.float64)[:, :3]
    if hue is not None:
        means, known = np.column_stack([means, _hue(colours)]), np.column_stack([known, hue])
    low, high = known[WITHIN[0]] - MARGIN, known[WITHIN[1]] + MARGIN
    share = float(((means < low) | (means > high)).any(1).mean())
    whose = f" after {after}" if after else ""
    if (state := state_of(share)) == "good":
        return Line(
            "stain", state, f"The stain{whose} is that of the training spots ({percent(1 - share)} of the tiles)."
        )
    mend = "" if after or not can else "try to normalise the stain (--stain macenko or stain=), or "
    return Line(
        "stain", state, f"{percent(share)} of the tiles{whose} are coloured unlike the training spots, "
        f"{_tone(np.median(means, axis=0)[:3] - known[50, :3])} as a whole.",
        f"{mend}take a model that knows this stain, or refit this one on a measured section of it",
    )  # fmt: skip


def _tone(off: FloatArray) -> str:
    """Return in words what a colour is beside another, by how much redder, greener and bluer it is."""
    light, warm = float(off.mean()), float(off[0] - off[2])
    said = ["paler" if light > 0 else "darker"] if abs(light) > MARGIN else []
    said += ["redder" if warm > 0 else "bluer"] if abs(warm) > MARGIN else []
    return " and ".join(said) or "of another hue"


def focus_line(sharp: FloatArray, reference: FloatArray | None) -> Line:
    """Say whether a slide is in focus.

    Parameters
    ----------
    sharp
        :func:`sharpness` of sampled tiles at the model's µm per pixel.
    reference
        ``reference.focus`` of the bundle; None: an absolute bound counts.
    """
    known = np.asarray(sharp, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return Line("focus", "unknown", "No tile could be looked at, so nothing is known of the focus.")
    least = BLURRED if reference is None else float(np.asarray(reference)[WITHIN[0]])
    than = "tiles in focus are" if reference is None else "99 of 100 training spots"
    share = float((known < least).mean())
    state = _noticed(share)
    if state == "good":
        some = f" but for {percent(share)} of the tiles" if share >= 0.01 else ""
        return Line("focus", state, f"In focus{some}.")
    return Line(
        "focus", state, f"{percent(share)} of the tiles are more blurred than {than}.",
        "scan it again in focus, or predict only where it is sharp; if it looks sharp, its µm per pixel may be wrong",
    )  # fmt: skip


def reading_line(unreadable: int, tiles: int, *, sampled: bool = False, damage: str = "") -> Line:
    """Say how many tiles could not be decoded, of all or of those looked at; `damage`: what reading warned of."""
    of = f"{unreadable:,} of {tiles:,} tiles{' looked at' * sampled}"
    if unreadable:
        state: State = "bad" if unreadable > SOME * tiles else "doubtful"
        return Line("reading", state, f"{of} cannot be decoded.", "copy the slide again from where it was scanned")
    if damage:
        return Line("reading", "doubtful", f"{damage.rstrip('.')}.", "copy the slide again from where it was scanned")
    return Line("reading", "good", f"All {tiles:,} tiles{' looked at' * sampled} can be read.")


def organ_line(trained_on: str, organ: str | None) -> Line:
    """Say whether a model is meant for a slide's organ; empty and None: nobody says."""
    if not trained_on:
        of = f"The slide is of {organ}; the" if organ else "The"
        return Line("organ", "unknown", f"{of} model does not say of which organ its training tissue was.",
                    "ask who trained it; training writes it down (organ)")  # fmt: skip
    said = f"This model was trained on {trained_on}"
    if not organ:
        return Line("organ", "unknown", f"{said}; it says nothing of other organs.", f"take it for {trained_on} alone")
    if _words(organ) & _words(trained_on):
        return Line("organ", "good", f"{said}, and the slide is of {organ}.")
    return Line("organ", "bad", f"{said}, not on {organ}: it says nothing of this slide.", f"take a model of {organ}")


def likeness_line(ood: FloatArray | None) -> Line:
    """Say how many tiles are like the training data, by their percentiles ``(n,)``; None: the model cannot tell."""
    known = np.empty(0) if ood is None else np.asarray(ood)[np.isfinite(ood)]
    if not len(known):
        return Line("likeness", "unknown", "The model cannot tell which tiles are unlike its training data.",
                    "train it again with this version to know")  # fmt: skip
    share = float((known >= OUTSIDE).mean())
    state = _noticed(share)
    if state == "good":
        return Line("likeness", state, f"{percent(1 - share)} of the tiles are like the training data.")
    few = f"Only {percent(1 - share)} of the tiles are" if share < 1 else "No tile is"
    return Line(
        "likeness", state, f"{few} like the training data.",
        "believe the map only where tiles are like it, and look at what is not" if share < 1 else "do not believe it",
    )  # fmt: skip


def slide_qc_of(prediction: Prediction, before: SlideCheck | None = None) -> SlideCheck:
    """Return what is known of a slide after its prediction: what was before, its tiles' likeness, what could be read.

    Parameters
    ----------
    prediction
        A map; of an unfinished one what is done counts.
    before
        From :func:`napari_peka.check_slide`; None: what the map's record holds of it.
    """
    record = prediction.record
    before = before or check_of(record.get(SLIDE_CHECK, {}))
    lines = [reading_line(prediction.n_unreadable, len(prediction.tiles)), likeness_line(prediction.ood)]
    if (trained_on := record.get("model", {}).get("tissue")) is not None:
        lines.append(organ_line(trained_on, record.get("settings", {}).get("organ")))
    return before.with_lines(lines)


def state_of(share: float) -> State:
    """Return what it means that this share of the tiles is unlike the training data."""
    return "good" if share <= SOME else "doubtful" if share <= MOST else "bad"


def _noticed(share: float) -> State:
    """Return :func:`state_of` where fewer tiles than a quarter are told already."""
    return "doubtful" if NOTICED <= share <= SOME else state_of(share)


def percentiles(carried: Mapping[str, FloatArray], name: str, shape: tuple[int, ...]) -> FloatArray | None:
    """Return percentiles that a bundle keeps, or None where it keeps none, or of another shape than this version's."""
    kept = carried.get(name)
    return None if kept is None or np.shape(kept) != shape else np.asarray(kept)


def _words(text: str) -> set[str]:
    return {w for w in "".join(c if c.isalpha() else " " for c in text.casefold()).split() if w not in _COMMON}


#: words that name no organ
_COMMON = {"of", "the", "and", "cancer", "carcinoma", "tumour", "tumor", "tissue", "human", "mouse", "normal"}
