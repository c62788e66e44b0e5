"""The report's pages: one self-contained HTML file, and the same in Markdown."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from retort.artifacts.reports import HTML, MARKDOWN, Picture, write_pictures
from retort.io.terminal import printable
from retort.metrics.format import TITLES, gain_text, p_text, percent, score_text, seconds_text, signed, with_interval
from retort.records.base import Score
from retort.report.base import Summary, verdict_text
from retort.report.hygiene import hygiene_lines


def write_pages(summary: Summary, folder: Path, template: str, pictures: Sequence[Picture], **facts: Any) -> None:
    """Render `templates/TEMPLATE.html.j2` and `.md.j2`, which need `facts` besides the summary. The pictures must be in
    `folder`."""
    write_pictures(folder, pictures)
    environment = _environment()
    config = yaml.safe_dump(summary.config, sort_keys=False, allow_unicode=True)
    known = {"summary": summary, "config": config, "fence": _fence(config), **facts}
    drawings = {one.key: _inline_svg((folder / f"{one.key}.svg").read_text(encoding="utf-8")) for one in pictures}
    html = environment.get_template(f"{template}.html.j2").render(known, drawings=drawings, of=partial(_of, pictures))
    (folder / HTML).write_text(html, encoding="utf-8")
    (folder / MARKDOWN).write_text(environment.get_template(f"{template}.md.j2").render(known), encoding="utf-8")


def _of(pictures: Sequence[Picture], *kinds: str) -> list[Picture]:
    """The pictures of these kinds, of all test sets, in the order of the kinds."""
    return [one for kind in kinds for one in pictures if one.key == kind or one.key.startswith(f"{kind}-")]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("retort.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=percent,
        signed=signed,
        p_text=p_text,
        interval=with_interval,
        duration=seconds_text,
        cell=_markdown_cell,
        code=_markdown_code,
        title=_title,
    )
    environment.globals.update(
        gain_text=gain_text,
        score_text=score_text,
        verdict_text=verdict_text,
        hygiene_lines=hygiene_lines,
        plain=_plain,
        shade=_shade,
    )
    return environment


def _title(metric: str) -> str:
    return TITLES.get(metric, metric)


def _plain(score: Score | None) -> str:
    return "-" if score is None else score_text(score.metric, score.value)


def _shade(count: int, row: tuple[int, ...]) -> str:
    """Opacity of a cell in the confusion matrix, by its share of the gold class."""
    return f"{0.15 + 0.6 * count / sum(row):.2f}" if count else "0"


def _markdown_cell(value: Any) -> Markup:
    """Make text safe for a table cell or a line: one line, no bars, and no HTML, links or code of its own."""
    text = _markdown_code(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(text.replace("](", "]\\("))  # marked as safe, so that nothing escapes it again


def _markdown_code(value: Any) -> str:
    """Make text safe for a code span, in a table too: one line, no bars, no backticks."""
    return printable(re.sub(r"\s+", " ", str(value))).replace("|", "\\|").replace("`", "'")


def _fence(text: str) -> str:
    """Backticks around a block of code, more than any line of it has in a row."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def _inline_svg(text: str) -> Markup:
    """Strip the XML prolog, which HTML does not allow. Text from the data is escaped in it already."""
    return Markup(text[text.index("<svg") :])
