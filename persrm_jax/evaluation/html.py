"""A report as one HTML file that needs nothing else: no network, no scripts, no other files."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from persrm_jax.evaluation.samples import Sample, outcome
from persrm_jax.jsonl import write_text

FOLDED = ("Config", "Provenance", "Each seed")
"""How headings begin whose sections are folded away, after the others."""


@dataclass(frozen=True)
class Section:
    """What a heading stands over."""

    heading: str
    body: Markup


def write_html(report: Path, samples: Sequence[Sample] = ()) -> Path:
    """`report.md` -> `report.html` beside it.

    Everything in it is shown as text, whatever markup it holds. A figure is a PNG in the report's
    folder; an image from elsewhere is left out, and its name stays.

    Args:
        report: Markdown, with one heading of the first level and sections of the second.
        samples: judgements to show side by side.
    """
    title, sections = _read(report)
    environment = Environment(
        loader=PackageLoader("persrm_jax.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        sections=[s for s in sections if not s.heading.startswith(FOLDED)],
        folded=[s for s in sections if s.heading.startswith(FOLDED)],
        samples=samples,
        outcome=outcome,
    )
    path = report.with_suffix(".html")
    write_text(path, page)
    return path


def _read(report: Path) -> tuple[str, list[Section]]:
    """The title, and the sections; what comes before the first has no heading."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("table_open", _open_table)
    markdown.add_render_rule("table_close", _close_table)
    tokens = markdown.parse(report.read_text(encoding="utf-8"))
    for token in tokens:
        token.children = [_embed(child, report.parent) for child in token.children or []]
    starts = [i for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag in ("h1", "h2")]
    title, sections = report.stem, []
    for start, end in zip([-3, *starts], [*starts, len(tokens)], strict=True):
        # A heading is three tokens: it opens, says something, closes.
        heading = tokens[start + 1].content if start >= 0 else ""
        if start >= 0 and tokens[start].tag == "h1":
            title, heading = heading, ""
        body = markdown.renderer.render(tokens[start + 3 : end], markdown.options, {})
        if body.strip():
            sections.append(Section(heading, Markup(body)))
    return title, sections


def _embed(token: Token, folder: Path) -> Token:
    """An image with its file inside; one that is no PNG of this folder as its name."""
    if token.type != "image":
        return token
    path = folder / str(token.attrs["src"])
    if path.parent != folder or path.suffix != ".png" or not path.is_file():
        return Token("text", "", 0, content=token.content)
    data = base64.b64encode(path.read_bytes()).decode()
    token.attrs["src"] = f"data:image/png;base64,{data}"
    return token


def _open_table(*args: Any) -> str:
    """A table that is wider than its page scrolls in it."""
    return '<div class="scroll"><table>'


def _close_table(*args: Any) -> str:
    return "</table></div>"
