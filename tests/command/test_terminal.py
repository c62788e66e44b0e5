"""What people see in terminals of several widths: no word is cut in two, no command cannot be copied."""

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios

import pytest
from typer.testing import CliRunner

from retort.cli import app

SAYS = """
import logging, sys
from retort.io.terminal import Spoken, say, say_command
logging.lastResort = Spoken(logging.WARNING)
{}
"""
SENTENCE = (
    "note   near-duplicates: 7 of the pool's rows (0.2%), 12 of the test rows (1.7%): 'snips-train-00546' "
    "nearly repeats 'snips-test-00296'"
)
COMMAND = [
    "retort",
    "report",
    "examples/snips.yaml",
    "--set=name=a name",
    "--set=data.limit=500",
    "--set=method.fine_tuning.epochs=10",
]


def shown(columns: int, code: str) -> str:
    """What Python code prints in a terminal of this width."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", SAYS.format(code)], stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    output = b""
    try:
        while part := os.read(ours, 65536):
            output += part
    except OSError:  # Linux says so that the other side has closed it
        pass
    os.close(ours)
    assert process.wait(10) == 0, output
    return output.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 80, 100, 160])
@pytest.mark.parametrize("code", [f"say({SENTENCE!r})", f"logging.getLogger('retort').warning({SENTENCE!r})"])
def test_a_line_goes_on_below_its_last_column_between_two_words(columns: int, code: str) -> None:
    first, *more = shown(columns, code).splitlines()
    assert first.startswith("note   near-duplicates: 7 of")
    assert all(line.startswith(" " * 7) and line[7] != " " for line in more)
    assert " ".join([first, *(line.strip() for line in more)]) == SENTENCE
    assert all(len(line) <= columns for line in (first, *more))
    assert len(more) == -(-len(SENTENCE) // columns) - 1 or columns < 100


def test_a_word_that_is_too_long_stays_whole() -> None:
    address = ".retort/store/students/4c/" + "4c56ad9b3dd98" * 5
    assert shown(40, f"say('Student:  {address}')") == f"Student:  {address}\n"
    assert shown(40, f"say('Student:  {address} of tonight')") == f"Student:  {address}\n          of tonight\n"


def test_empty_lines_and_indents_stay() -> None:
    assert shown(40, r"say('\n  a\n\n    b')") == "\n  a\n\n    b\n"


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_command_can_be_copied_whole(columns: int) -> None:
    output = shown(columns, f"say_command('Report:   ', {COMMAND!r})")
    assert shlex.split(output.removeprefix("Report:   ").replace("\\\n", " ")) == COMMAND
    assert all(len(line) <= columns for line in output.splitlines())
    assert "name=a name" in output


def test_without_a_terminal_a_line_stays_a_line() -> None:
    code = SAYS.format(f"say({SENTENCE!r}); say_command('Report:   ', {COMMAND!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [SENTENCE, "Report:   " + shlex.join(COMMAND)]


def test_the_list_of_commands_cuts_no_sentence_off() -> None:
    """Click ends a sentence that is longer than its column in three dots."""
    listed = (
        CliRunner().invoke(app, ["--help"], terminal_width=80).output.partition("Commands:")[2].partition("\n\n")[0]
    )
    assert len(listed.splitlines()) > 15
    assert "..." not in listed


def test_the_help_imports_nothing_slow() -> None:
    code = (
        "import atexit, sys; from retort.cli import main; sys.argv = ['retort', '--help'];"
        "slow = ('torch', 'numpy', 'pydantic', 'prefect', 'mlflow', 'rich', 'asyncio', 'retort.config');"
        "atexit.register(lambda: print([name for name in slow if name in sys.modules], file=sys.stderr)); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert done.stderr.strip() == "[]"
