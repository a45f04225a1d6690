"""MkDocs hook: the command line's reference, from the same declarations that ``--help`` shows."""

from __future__ import annotations

from typing import Any

MARK = "<!-- every option -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference in place of the mark."""
    if MARK not in markdown:
        return markdown
    import click
    import typer
    from typer.cli import get_docs_for_click

    from napari_peka.cli import app

    command = typer.main.get_command(app)
    name = "napari-peka"
    text = get_docs_for_click(obj=command, ctx=click.Context(command, info_name=name), name=name)
    # below this page's own headings
    _, _, commands = text.partition(f"## `{name} ")
    return markdown.replace(MARK, f"### `{name} {commands}".replace("\n## `", "\n### `"))
