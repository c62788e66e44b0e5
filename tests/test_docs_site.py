"""The site of `make docs` builds, and a dead link in it would be seen."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "properdocs", "build", "--config-file", str(config), "--site-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_builds_without_a_dead_link(tmp_path: Path) -> None:
    built = build(ROOT / "properdocs.yml", tmp_path)
    assert built.returncode == 0, built.stderr
    start = (tmp_path / "index.html").read_text()
    styles = re.findall(r'href="([^"?]+\.css)', start) + re.findall(r'src="([^"?]+\.js)', start)
    assert len(styles) > 2
    assert [style for style in styles if not (tmp_path / style).is_file()] == [], "the theme's own, none from elsewhere"
    pages = {page.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("index.html")}
    assert {"index.html", "docs/commands/index.html", "examples/index.html", "CONTRIBUTING/index.html"} <= pages
    assert {f"docs/{page.stem}/index.html" for page in (ROOT / "docs").glob("*.md")} <= pages


@pytest.mark.parametrize("link", ["no-page.md", "teachers.md#no-heading", "../examples/no-example.yaml"])
def test_a_dead_link_is_seen(tmp_path: Path, link: str) -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "examples", "retort", "properdocs.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("docs", "infra"):
        shutil.copytree(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/students.md").open("a") as page:
        page.write(f"\n[dead]({link})\n")
    built = build(tmp_path / "properdocs.yml", tmp_path / "site")
    assert built.returncode == 1
    assert link.rpartition("#")[2] in built.stderr
