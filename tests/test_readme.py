"""README and docs say what is there."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from retort.cli import app
from retort.recipes import parse_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_its_config_is_one_that_runs() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    config = parse_config(yaml.safe_load(block), "README.md")
    assert config.name == "snips"
    for address in (config.data.labeled, config.data.unlabeled, config.data.test):
        assert (ROOT / str(address)).is_file()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    dead = []
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert dead == []


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme() -> None:
    told = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", README))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} == told


def test_its_commands_exist_and_none_is_forgotten() -> None:
    told = set(re.findall(r"^\| `retort (\w+)", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE))
    assert told == {
        *(command.name or command.callback.__name__ for command in app.registered_commands if command.callback),
        *(group.name for group in app.registered_groups),
    }
    for command in told:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = {name for page in PAGES for name in re.findall(r"^make (\S+)", page.read_text(), re.MULTILINE)}
    assert told <= targets


def test_its_tree_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"## Where things are\n```\n(.*?)```", page, re.DOTALL)
    assert tree is not None
    named = re.findall(r"(?:^|\s)((?:flows|tasks|retort|examples|benchmarks|tests)/[\w/.]*)", tree[1])
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_direct_dependency_is_explained() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert all("# " in line for line in block[1].splitlines())


def test_the_lock_pins_every_direct_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", lock, re.MULTILINE))
    pyproject = (ROOT / "pyproject.toml").read_text()
    for name, version in re.findall(r'^    "([a-z0-9-]+)==([^"]+)"', pyproject, re.MULTILINE):
        assert pinned[name] == version
