"""The README says what is there."""

import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from retort.cli import app
from retort.recipes import parse_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_config_is_one_that_runs() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    config = parse_config(yaml.safe_load(block), "README.md")
    assert config.name == "snips"
    for address in (config.data.labeled, config.data.unlabeled, config.data.test):
        assert (ROOT / str(address)).is_file()


def test_its_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_its_commands_exist_and_none_is_forgotten() -> None:
    told = set(re.findall(r"^\| `retort (\w+)", README, re.MULTILINE))
    assert told == {
        *(command.name or command.callback.__name__ for command in app.registered_commands if command.callback),
        *(group.name for group in app.registered_groups),
    }
    for command in told:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\S+)", README, re.MULTILINE)) <= targets


def test_its_tree_names_what_is_there() -> None:
    tree = re.search(r"## Where things are\n```\n(.*?)```", README, re.DOTALL)
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
