"""Texts, labels and names that somebody else wrote, in what people look at: reports, messages, the terminal."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from endpoint_server import EndpointServer, ask, requests
from flows.launch import harmless
from retort.errors import ConfigError
from retort.io.terminal import printable, say
from retort.report.mckd.pictures import draw_all
from retort.report.mckd.step import ORDERS
from retort.report.mckd.summary import MckdSummary, table
from retort.report.mckd.terminal import render_terminal
from retort.report.pages import write_pages
from synthetic_run import synthetic

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> [here](javascript:alert(3)) ![](http://127.0.0.1:9/seen) "
    "<http://127.0.0.1:9/> ``` ` | \n# Heading\n\x1b]0;title\x07\x1b[2J\x9b31m\u202e =cmd|' /C calc'!A0"
)
THEIRS = {"text", "old", "new", "gold", "raw", "detail", "example_id", "predicted", "example", "source", "note"}
"""Fields of a summary that hold what is in data, completions and answers; below `BELOW`, all do."""
BELOW = {"errors", "failures", "config", "teachers"}


def spoiled(value: Any, theirs: bool = False) -> Any:
    """A summary with hostile text behind every text that somebody else may have written."""
    if isinstance(value, dict):
        return {name: spoiled(one, theirs or name in THEIRS | BELOW) for name, one in value.items()}
    if isinstance(value, list):
        return [spoiled(one, theirs) for one in value]
    return value + HOSTILE if isinstance(value, str) and theirs else value


class Seen(HTMLParser):
    """The elements and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> MckdSummary:
    from retort.artifacts.reports import Report

    run = synthetic(tmp_path_factory.mktemp("run"))
    honest = Report.open(run.store, run.report).summary(MckdSummary)
    values = spoiled(json.loads(honest.model_dump_json()))
    values["failures"]["reasons"] = {name + HOSTILE: count for name, count in values["failures"]["reasons"].items()}
    return MckdSummary.model_validate(values)


@pytest.fixture(scope="module")
def pages(summary: MckdSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_pages(summary, folder, "mckd", draw_all(summary, folder), table=table(summary), orders=ORDERS)
    return folder


def test_the_html_has_no_element_of_theirs(pages: Path) -> None:
    html = (pages / "report.html").read_text()
    seen = Seen()
    seen.feed(html)
    assert "script" not in seen.tags
    assert not {"onerror", "src"} & seen.attributes
    assert "default-src 'none'" in html
    assert html.count("&lt;script&gt;") > 20


def test_the_markdown_has_no_html_and_no_link_of_theirs(pages: Path) -> None:
    """Outside of code, where Markdown shows what is there."""
    text = (pages / "report.md").read_text()
    prose = re.sub(r"^(`{3,}).*?^\1`*$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    assert prose.count("alert") > 20, "there is much of it, and all harmless"
    assert not re.search(r"<\s*[a-z!/]", prose, re.IGNORECASE)
    assert "](" not in prose
    assert not [line for line in text.splitlines() if line.startswith("# Heading")]


def test_the_terminal_obeys_nothing(summary: MckdSummary) -> None:
    shown = StringIO()
    console = Console(file=shown, width=120, force_terminal=True)
    console.print(harmless(console, render_terminal(summary, console.width)))
    text = shown.getvalue()
    assert "\\x1b]0;title" in text.replace("\n", "")
    assert not re.search("\x1b(?!\\[[0-9;]*m)|[\x07\x9b\u202e]", text), "the console's own colors are all"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 語 \t\n", "plain é 語 \t\n"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b31m\x7f\r", "\\x9b31m\\x7f\\x0d"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    say(text)
    assert capsys.readouterr().out == shown + "\n"


def test_a_message_of_the_command_obeys_nothing(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J.yaml"
    path.write_text('name: a\nproblem: {kind: "\\e]0;x\\a"}\n')
    code, _, err = command("doctor", path)
    assert code == 2
    assert "\x1b" not in err
    assert "\\x1b[2J.yaml" in err


def test_a_servers_message_obeys_nothing(endpoint_server: EndpointServer, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint_server.fail(endpoint_server.error(401, "\x1b]0;title\x07 no"))
    with pytest.raises(ConfigError) as caught:
        ask(endpoint_server, requests(1))
    say(f"error: {caught.value}")
    assert "\\x1b]0;title\\x07 no" in capsys.readouterr().out
