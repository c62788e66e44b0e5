"""`retort.io.database`."""

import subprocess
import sys

_ASKED = """
from retort.io.database import open_database
with open_database(threads=1) as database:
    print(database.execute("SELECT current_setting('enable_progress_bar')").fetchone()[0])
"""


def test_no_progress_bar_where_python_runs_no_file() -> None:
    """There DuckDB draws one on standard output, among a command's results."""
    command = [sys.executable, "-c", _ASKED]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
