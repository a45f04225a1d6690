"""What a person reads on a terminal.

Progress: a rich bar on standard error, a plain line now and then where that is no terminal. Results: as text, where
``--json`` was not asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from napari_peka.core.files import bytes_text
from napari_peka.core.progress import JobProgress, human_time

if TYPE_CHECKING:
    from napari_peka.workflows.speed import Speeds

#: seconds between the first lines in a log file; the pause doubles up to the longest, so that a night is a page
LOG_EVERY_S, LOG_AT_MOST_S = 10.0, 600.0


class ConsoleProgress(JobProgress):
    """Shows a job on standard error.

    Parameters
    ----------
    title
        What the job works on, such as the slide's file name.
    bars
        Where to draw: a line is added.
    """

    def __init__(self, title: str, bars: Progress) -> None:
        super().__init__()
        self.title, self.bars = title, bars
        self.live = _is_live(bars.console)
        self.task = bars.add_task("", total=None, title=title)
        self._said, self._next, self._pause = 0, 0.0, LOG_EVERY_S

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a stage; what a former run did is said once."""
        if done:
            self._line(f"resumed: {done} of {total} were done before")
        self._next, self._pause = time.monotonic(), LOG_EVERY_S
        super().stage(name, total, done)

    def changed(self) -> None:
        """Draw the state; called in the job's thread."""
        while self._said < len(self.notes):
            self._line(f"warning: {self.notes[self._said]}")
            self._said += 1
        state, now = self.snapshot(), time.monotonic()
        if self.live:
            self.bars.update(self.task, description=state.text, completed=state.done, total=state.total)
        elif state.total is not None and now >= self._next and state.done < state.total:
            self._next, self._pause = now + self._pause, min(2 * self._pause, LOG_AT_MOST_S)
            self._line(state.text)

    def _line(self, text: str) -> None:
        self.bars.console.print(f"{self.title}: {text}", markup=False)


@contextmanager
def console_progresses(
    console: Console | None = None,
) -> Iterator[Callable[[str], AbstractContextManager[ConsoleProgress]]]:
    """Give what shows the progress of jobs, some of them at the same time, on standard error while the block runs."""
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    # the bar comes before the words: it stays where it is while they change
    bars = Progress(
        TextColumn("{task.fields[title]}", markup=False, table_column=Column(no_wrap=True, max_width=32)),
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        refresh_per_second=4,
    )

    ended: list[ConsoleProgress] = []

    @contextmanager
    def one(title: str) -> Iterator[ConsoleProgress]:
        while ended:
            bars.remove_task(ended.pop().task)
        progress = ConsoleProgress(title, bars)
        try:
            yield progress
        finally:
            ended.append(progress)

    with bars if _is_live(console) else nullcontext():
        yield one


@contextmanager
def console_progress(title: str, console: Console | None = None) -> Iterator[ConsoleProgress]:
    """Show a job's progress on standard error while the block runs."""
    with console_progresses(console) as shown, shown(title) as progress:
        yield progress


def _is_live(console: Console) -> bool:
    """Return whether a bar can be drawn again and again."""
    return console.is_terminal and not console.is_dumb_terminal


def info_text(data: dict[str, Any]) -> str:
    """Return what :meth:`Slide.info` says, for a person."""
    h, w = data["shape"]
    lines = [f"{'size':<12} {w} × {h} px (width × height)"]
    if data["mpp"] is None:
        lines.append(f"{'resolution':<12} not known; give it with --mpp")
    else:
        y, x = data["mpp"]
        both = f"{y:.4g}" if f"{y:.4g}" == f"{x:.4g}" else f"{y:.4g} × {x:.4g} (y, x)"
        lines.append(f"{'resolution':<12} {both} µm/px ({data['mpp_source']})")
        lines.append(f"{'area':<12} {w * x / 1000:.1f} × {h * y / 1000:.1f} mm")
    lines += [f"{k:<12} {data[k]}" for k in ("vendor", "reader")]
    lines += [f"{'beside it':<12} {', '.join(data['associated'])}"] if data["associated"] else []
    lines += [
        f"level {i:<6} {level['shape'][1]} × {level['shape'][0]} px, downsample {level['downsample']:.4g}"
        for i, level in enumerate(data["levels"])
    ]
    return "\n".join([*lines, *(f"{'warning':<12} {w}" for w in data["warnings"])])


def check_text(data: dict[str, Any]) -> str:
    """Return a slide's check, for a person: the verdict, then a line a question."""
    lines = [f"{'verdict':<12} {data['verdict']}"]
    for line in data["checks"]:
        lines.append(f"{line['key']:<12} {line['state']}: {line['text']}")
        lines += [f"{'':<12}   {line['mend']}"] if line["mend"] else []
    return "\n".join(lines)


def _doubts(entry: dict[str, Any]) -> list[str]:
    """Return the verdict on a slide, and what speaks against it, each with what to do."""
    from napari_peka.trust.slide_qc import check_of

    against = check_of(entry).against
    return [f"  {entry['verdict']}", *(f"    {line.key}: {line.text} → {line.mend}" for line in against)]


def predict_text(entries: list[dict[str, Any]]) -> str:
    """Return the entries of ``predict``, for a person."""
    lines = []
    for e in entries:
        if "error" in e:
            lines.append(f"{e['slide']}: not done, {e['error']}")
            continue
        bad = f", {e['unreadable_tiles']} unreadable" if e["unreadable_tiles"] else ""
        before = f", {e['resumed_tiles']} of them from before" if e["resumed_tiles"] else ""
        lines.append(f"{e['slide']}: {e['tiles']} tiles{bad}{before}, {human_time(e['seconds'])} -> {e['output']}")
        lines += [f"  {p}" for p in e["pictures"]]
        lines += _doubts(e)
    return "\n".join(lines)


def estimate_text(entries: list[dict[str, Any]]) -> str:
    """Return the entries of ``predict --dry-run``, for a person."""
    lines = []
    for e in entries:
        if "error" in e:
            lines.append(f"{e['slide']}: cannot be predicted, {e['error']}")
            continue
        size = f"{e['tiles']:,} tiles of {e['tile_um']:.0f} µm"
        passes = f", {e['passes']} passes each" if e["passes"] > 1 else ""
        there = f", {e['tiles'] - e['tiles_left']:,} of them are there" if e["tiles_left"] < e["tiles"] else ""
        lines += [f"{e['slide']}: {size}{passes}{there}", f"  {e['text']}"]
        lines += [f"  takes about {bytes_text(e['result_bytes'])} of disk"] if e["tiles_left"] else []
        lines += [f"  in the way: {e['why']}"] if e["why"] else []
        lines += _doubts(e)
    return "\n".join(lines)


def speeds_text(found: Speeds) -> str:
    """Return what ``doctor --speed`` measured, for a person: a row each, and what to choose."""
    exact = found.runs[0].tiles_per_second or 1.0
    head = f"{'backend':<10} {'precision':<10} {'tiles/s':>8} {'speed':>7} {'PCC':>8} {'load':>7}"
    lines = [f"{found.model} on {found.device}", head]
    for r in found.runs:
        how = f"{r.backend:<10} {r.precision:<10}"
        if r.tiles_per_second is None or r.pcc is None or r.loading_s is None:
            lines.append(f"{how} {r.why}")
            continue
        speed = f"{r.tiles_per_second / exact:.2f}×"
        lines.append(f"{how} {r.tiles_per_second:>8.2f} {speed:>7} {r.pcc:>8.5f} {r.loading_s:>5.1f} s")
    lines += [found.warning] if found.warning else []
    backend, precision = found.choose.backend, found.choose.precision
    taken = "; auto takes it" if (backend, precision) == found.auto else f"; auto takes {' '.join(found.auto)}"
    return "\n".join([*lines, f"choose: --backend {backend} --precision {precision}{taken}"])


def rows(data: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a line for each entry that says something, nested ones indented."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}"
            yield from rows(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and value:
            items = (" ".join(map(str, v.values())) if isinstance(v, dict) else str(v) for v in value)
            yield f"{indent}{key:<{16 - len(indent)}} {', '.join(items)}"
        elif value not in (None, "", [], (), {}):
            yield f"{indent}{key:<{16 - len(indent)}} {value}"


def listing_text(data: dict[str, Any]) -> str:
    """Return the models and encoders there are, for a person."""
    lines = [f"{m['name']:<28} {m['genes']:>6} genes  {m['encoder']}" for m in data["models"]]
    lines += ["", f"encoders (models folder: {data['folder']})"]
    lines += [
        f"{e['name']:<28} {e['dim']:>6} dims   {'gated' if e['gated'] else 'open '}  {e['licence']}"
        for e in data["encoders"]
    ]
    return "\n".join(lines)


def genes_text(table: list[dict[str, Any]]) -> str:
    """Return a model's genes, for a person: symbol, Ensembl id, held-out PCC with its interval, noise ceiling."""
    lines = [f"{'gene':<16} {'Ensembl id':<16} {'held-out PCC':<24} attainable"]
    for r in table:
        pcc, low, high, top = (
            "–" if r[k] is None else f"{r[k]:.3f}" for k in ("pcc", "pcc_low", "pcc_high", "attainable_pcc")
        )
        between = "" if r["pcc_low"] is None else f" ({low} to {high})"
        mark = "" if r["predictable"] else "  not shown to be predicted"
        lines.append(f"{r['gene']:<16} {r['gene_id']:<16} {pcc + between:<24} {top}{mark}")
    return "\n".join(lines)
