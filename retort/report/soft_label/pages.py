"""The report for people: one HTML file that needs nothing else, and the same in Markdown."""

from pathlib import Path

import yaml

from retort.report.mckd.pictures import SVG
from retort.report.pages import HTML, MARKDOWN, inline_svg, page_environment
from retort.report.soft_label.summary import ARMS, TEXTS, ScoreSummary, cost_table, table

GROUPS_SHOWN = 10
"""Questions that the exported arm answers worst."""


def write_score_pages(summary: ScoreSummary, folder: Path) -> None:
    """Needs the picture in `folder`."""
    environment = page_environment()
    facts = {
        "summary": summary,
        "tables": {rows: table(summary, rows) for rows in ("dev", *summary.tests)},
        "costs": cost_table(summary),
        "arms": ARMS,
        "texts": TEXTS,
        "groups_shown": GROUPS_SHOWN,
        "config": yaml.safe_dump(summary.config, sort_keys=False, allow_unicode=True),
    }
    picture = inline_svg((folder / SVG).read_text(encoding="utf-8"))
    html = environment.get_template("score.html.j2").render(facts, picture=picture)
    (folder / HTML).write_text(html, encoding="utf-8")
    (folder / MARKDOWN).write_text(environment.get_template("score.md.j2").render(facts), encoding="utf-8")
