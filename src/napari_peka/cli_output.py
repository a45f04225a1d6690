"""What the command line leaves on standard output."""

from __future__ import annotations

import json
import math
import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from napari_peka.core.files import bytes_text

if TYPE_CHECKING:
    from napari_peka.config import Settings
    from napari_peka.io.cache import Cached

_WIDTH = 10


def write_result(data: Any, as_json: bool, text: str) -> None:
    """Print `data` as one JSON document, or `text` for a person."""
    print(json.dumps(_finite(data), indent=1, allow_nan=False) if as_json else text)  # noqa: T201


def _finite(data: Any) -> Any:
    """Return data for JSON, which has no NaN: it becomes null."""
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def report_text(document: dict[str, Any]) -> str:
    """Return what ``report.json`` says, for a person: on what was judged, how well, beside noise and baselines."""
    from napari_peka.training.report_words import BASELINE_NAMES, Score, genes_in_words, grade, percent

    summary = document["summary"]
    lines = [_row("judged on", document["split"])]
    label = "PCC"
    for key, over in (
        ("pcc_hvg50", genes_in_words(len(document["hvg50"]))),
        ("pcc_all", f"all {document['n_genes']:,} genes"),
    ):
        score = Score.of(summary.get(key))
        if score.known:
            around = f", 95 % CI {score.low:.3f} to {score.high:.3f}" if score.interval else ""
            lines.append(_row(label, f"{score.mean:.3f} ({grade(score.mean)}{around}), mean over {over}"))
            label = ""
    if label:
        lines.append(_row(label, "not known: no gene varies where there are predictions"))
    ceiling, share = (Score.of(summary.get(k)) for k in ("attainable_hvg50", "share_of_attainable_hvg50"))
    if ceiling.known and share.known:
        lines.append(_row("ceiling", f"{ceiling.mean:.3f} is what a perfect prediction would reach, since the"))
        lines.append(_row("", f"measurement itself scatters; the model reaches {percent(share.mean)} of it"))
    baselines = {
        BASELINE_NAMES.get(name, name): Score.of(scores.get("pcc_hvg50"))
        for name, scores in (summary.get("baselines") or {}).items()
    }
    known = sorted(((n, s.mean) for n, s in baselines.items() if s.known), key=lambda item: -item[1])
    label = "baselines"
    for name, mean in known:
        lines.append(_row(label, f"{mean:.3f} {name}"))
        label = ""
    return "\n".join(lines)


def comparison_text(rows: list[dict[str, Any]]) -> str:
    """Return a benchmark's table as wide as a terminal: what all arms have in common stands above it."""
    names = ("encoder", "adapter", "features", "averaging", "context", "head", "protocol")
    alike = [n for n in names if len({row[n] for row in rows}) == 1]
    cells = [[n for n in names if n not in alike] + ["PCC ± sd", "of ceiling", "gain over the same frozen (95 % CI)"]]
    for row in rows:
        line = [str(row[n]) for n in names if n not in alike]
        cells.append([*line, *(_cell(row, key) for key in ("pcc", "share_of_attainable", "gain_percent"))])
    if any(_known(row["random_split_flatters"]) for row in rows):
        cells[0].append("spots at random")
        for line, row in zip(cells[1:], rows):
            line.append(_cell(row, "pcc_random_split"))
    widths = [max(map(len, column)) for column in zip(*cells)]
    common = ", ".join(f"{n} {rows[0][n]}" for n in alike if rows and rows[0][n])
    lines = ["  ".join(f"{text:<{w}}" for text, w in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([common, "", *lines] if common else lines)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not _known(value):
        return ""
    if key == "share_of_attainable":
        return f"{value:.0%}"
    if key == "gain_percent":
        low, high = row["gain_percent_ci95"]
        return f"{value:+.1f} %" + (f" ({low:+.1f} to {high:+.1f})" if _known(low) and _known(high) else "")
    if key == "pcc" and _known(row["pcc_sd"]):
        return f"{value:.3f} ± {row['pcc_sd']:.3f}"
    return f"{value:.3f}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def files_text(**paths: Any) -> str:
    """Return where results lie, a line each."""
    return "\n".join(_row(name, str(path)) for name, path in paths.items())


def recalibrated_text(data: dict[str, Any]) -> str:
    """Return what fitting intervals to measured spots gave, for a person."""
    held = data["coverage_90"]
    lines = [_row("result", data["result"]), _row("fitted to", f"{data['spots']:,} spots of {data['section']}")]
    for name, said in (("before", "before"), ("left_out", "after a fit to other parts of the section")):
        if held[name] is not None:
            share = f"of 100 measured spots {100 * held[name]:.0f} lay within the 90 % interval"
            lines.append(_row("" if name == "left_out" else "held", f"{share} {said}"))
    return "\n".join(lines)


def cache_text(entries: list[Cached], folder: Any, *, removed: bool) -> str:
    """Return what is kept, or what was removed, for a person."""
    lines = [
        f"{bytes_text(e.size_bytes):>9}  {e.age_days:6.1f} days  {e.kind:<{_WIDTH}} {e.path if removed else e.name}"
        for e in entries
    ]
    total = bytes_text(sum(e.size_bytes for e in entries))
    what = "removed from" if removed else "kept in"
    return "\n".join([*lines, f"{total:>9}  {what} {folder}"])


def _row(label: str, text: str) -> str:
    return f"{label:<{_WIDTH}} {text}"


def settings_rows(kind: type[Settings]) -> list[dict[str, str]]:
    """Return ``setting``, ``default``, ``values`` and ``what`` of each field, in words; a class's own come first."""
    from napari_peka.config import Settings

    fields = kind.model_fields
    own = [name for name in fields if name in vars(kind).get("__annotations__", {})]
    rows = []
    for name in dict.fromkeys([*own, *fields]):
        field, default = fields[name], fields[name].get_default()
        nested = isinstance(default, Settings)
        rows.append(
            {
                "setting": name,
                "default": "its own defaults" if nested else _yaml(default),
                "values": "" if nested else _kind(field.annotation) + "".join(_bounds(field.metadata)),
                "what": (field.description or "").replace("None", "null"),  # as YAML has it
            }
        )
    return rows


def settings_text(rows: list[dict[str, str]]) -> str:
    """Return settings for a person: a line with name, default and values, and one that tells what it is."""
    lines = []
    for row in rows:
        lines.append(f"{row['setting']} = {row['default']}" + (f"   ({row['values']})" if row["values"] else ""))
        lines += [f"    {row['what']}"] if row["what"] else []
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _kind(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(args[0])
    if origin is Literal:
        return ", ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return ", ".join(_kind(a) for a in args if a is not type(None))
    if origin is list:
        return f"list of {_kind(args[0])}"
    if origin is dict:
        return "name: value"
    return {int: "whole number", float: "number", bool: "true, false", str: "text"}.get(kind, kind.__name__)


def _bounds(metadata: list[Any]) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return [f", {signs[k]} {getattr(m, k):g}" for m in metadata for k in signs if getattr(m, k, None) is not None]
