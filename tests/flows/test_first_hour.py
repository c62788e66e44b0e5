"""The commands of docs/first-hour.md that lead from a CSV file to answers, with fewer rows and a shorter training.

Those that only look (doctor, plan, report) and those of the second night are checked as all commands of the docs are,
in `tests/test_docs_commands.py`.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/first-hour.md").read_text()
SMALLER = [("[10:610]", "[10:60]"), ("[:300]", "[:20]"), ("updates: 100", "updates: 40")]
LOOKING = re.compile(r"retort (doctor|plan|report) .*")


@pytest.mark.slow
def test_its_commands_lead_from_a_csv_to_answers(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "\n".join(line for line in first_night(PAGE).splitlines() if not LOOKING.fullmatch(line))
    for before, after in [
        *SMALLER,
        ("CHECKOUT", str(ROOT)),
        ("localhost:8000", f"localhost:{port}"),
        ("retort serve", f"retort serve --port {port}"),
    ]:
        assert before in script, f"docs/first-hour.md no longer has {before}"
        script = script.replace(before, after)
    # The server must not outlive a command that failed.
    script = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 1 of 'requests' is the champion, the first" in done.stdout
    assert done.stdout.count('"label":') == 2
    assert '"version":"1"' in done.stdout


def first_night(page: str) -> str:
    """The blocks that are not marked as one script; the Python block is the file that its first line names."""
    first, _, _ = page.partition("## The second night")
    blocks = re.findall(r"(<!-- not run.*?-->\n)?^```(sh|python)\n(.*?)^```", first, re.MULTILINE | re.DOTALL)
    lines = []
    for mark, language, code in blocks:
        if language == "python":
            lines.append(f"cat > {code.splitlines()[0].removeprefix('# ')} <<'END'\n{code}END\n")
        elif not mark:
            lines.append(code)
    return "".join(lines)
