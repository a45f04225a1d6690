"""MkDocs hook: tables of settings, from the same classes that validate them."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

#: <!-- settings TrainConfig --> becomes a table of its fields, so that no default in the docs goes stale
MARK = re.compile(r"<!-- settings (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table in place of each mark."""
    return MARK.sub(lambda hit: _table(hit[1]), markdown)


def _table(name: str) -> str:
    from napari_peka import config

    rows = ["| setting | default | values | what |", "|---|---|---|---|"]
    for key, field in getattr(config, name).model_fields.items():
        default = field.get_default()
        shown = "its own defaults" if isinstance(default, config.Settings) else f"`{_yaml(default)}`"
        rows.append(f"| `{key}` | {shown} | {_values(field)} | {field.description or ''} |")
    return "\n".join(rows)


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _values(field: Any) -> str:
    return _kind(field.annotation) + "".join(_bounds(field.metadata))


def _kind(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(args[0])
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in args)
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
