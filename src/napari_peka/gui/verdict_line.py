"""What a slide's check came to, in one line; each answer, with what to do, when the mouse rests on it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from napari_peka.gui.choosers import Snug
from napari_peka.gui.words import in_the_window

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction
    from napari_peka.trust.slide_qc import SlideCheck

#: of the mark before the words, readable on dark and light ground; what is not known is no reason for doubt
_COLOURS = {"good": "#3f9f5f", "unknown": "#3f9f5f", "doubtful": "#d98e1f", "bad": "#d9534f"}
_UNKNOWN = "#8a8f98"
_MARKS = {"good": "✓", "unknown": "✓", "doubtful": "?", "bad": "✕"}


class VerdictLine(Snug):
    """Shows the verdict of a slide's check; hidden while there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.hide()

    def show_check(self, check: SlideCheck | None) -> None:
        """Show a check, or nothing."""
        self.setVisible(check is not None)
        if check is None:
            self.setText("")
            self.setToolTip("")
            return
        words = escape(in_the_window(check.verdict))
        mend = check.worst[0].mend if check.against else ""
        do = f"<br>→ {escape(in_the_window(mend))}" if mend else ""
        self.setText(f'<b style="color: {_COLOURS[check.state]}">{_MARKS[check.state]}</b> {words}{do}')
        self.setToolTip("<br>".join(_row(*line) for line in _lines(check)))


def of_map(prediction: Prediction) -> SlideCheck | None:
    """Return what is known of a map's slide; None while it grows, and of maps of versions that kept nothing of it."""
    from napari_peka.trust.slide_qc import SLIDE_CHECK, slide_qc_of

    return slide_qc_of(prediction) if SLIDE_CHECK in prediction.record and not prediction.partial else None


def _lines(check: SlideCheck) -> list[tuple[str, str, str]]:
    return [(line.state, in_the_window(line.text), in_the_window(line.mend)) for line in check.lines]


def _row(state: str, text: str, mend: str) -> str:
    mark = "–" if state == "unknown" else _MARKS[state]
    do = f"<br>&nbsp;&nbsp;&nbsp;→ {escape(mend)}" if mend else ""
    colour = _UNKNOWN if state == "unknown" else _COLOURS[state]
    return f'<b style="color: {colour}">{mark}</b> {escape(text)}{do}'
