"""MkDocs hook: tables of settings, from the same classes that validate them."""

from __future__ import annotations

import re
from typing import Any

#: <!-- settings TrainConfig --> becomes a table of its fields, so that no default in the docs goes stale
MARK = re.compile(r"<!-- settings (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table in place of each mark."""
    return MARK.sub(lambda hit: _table(hit[1]), markdown)


def _table(name: str) -> str:
    from napari_peka import config
    from napari_peka.cli_output import settings_rows

    rows = ["| setting | default | values | what |", "|---|---|---|---|"]
    for row in settings_rows(getattr(config, name)):
        default = f"`{row['default']}`" if row["values"] else row["default"]
        rows.append(f"| `{row['setting']}` | {default} | {row['values']} | {row['what']} |")
    return "\n".join(rows)
