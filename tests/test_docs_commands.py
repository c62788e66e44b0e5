"""Every command in README and docs exists as it stands there: command, options, fields, files, targets.

What another program does (Docker, kubectl ...) is not tried; its block says why, in a comment before it:
`<!-- not run: needs a cluster -->`. The files that it names must exist all the same.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from retort.cli import app
from retort.errors import UserError
from retort.recipes import load_config

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```sh\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:retort|python|make) [^`]+)`")
SHELL = {
    *("export", "source", "cp", "mv", "mkdir", "cd", "echo", "sed", "cat", "head", "sleep", "kill", "curl", "git"),
    *("done", "pip", "uv"),
}
"""Programs that are everywhere; nothing of ours to check but the files."""
OURS = re.compile(r"(examples|docker|infra|benchmarks|tests|retort|flows|tasks|docs)/[\w./-]+")
MADE = {"docker/.env", "rows.py"}
"""Files that a reader makes."""


class Command(NamedTuple):
    words: list[str]
    is_marked: bool
    is_whole: bool
    """False for one in a sentence, which may leave out arguments."""


def commands_of(page: str) -> Iterator[Command]:
    for block in BLOCK.finditer(page):
        for line in block["code"].replace("\\\n", " ").splitlines():
            yield from (Command(words, bool(block["why"]), True) for words in simple_commands(line))
    for inline in INLINE.findall(re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)):
        told = re.sub(r"[\[\]]", "", " ".join(inline.split()))  # brackets around what may be left out
        yield from (Command(words, False, False) for words in simple_commands(told))


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without variables before them and redirections after them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            skip = bool(set(word) & set("<>"))
            if skip:
                words = words[:-1] if words[-1:] == ["2"] else words
            elif words:
                yield words
                words = []
        elif skip:
            skip = False
        elif words or not re.fullmatch(r"\w+=.*|do|env|-u|RETORT_HOME", word):
            words.append(word)


def faults(command: Command) -> Iterator[str]:
    words = command.words
    program = Path(words[0]).name
    for word in words:
        path = word.partition("=")[2] if "=" in word else word
        if OURS.fullmatch(path) and path not in MADE and "NAME" not in path and not any(ROOT.glob(path)):
            yield f"{path} does not exist"
    inner = words.index("retort") if "exec" in words and "retort" in words else 0
    if Path(words[inner]).name == "retort":
        yield from faults_of_retort(words[inner + 1 :], command.is_whole)
    elif program == "make":
        yield from faults_of_make(words[1:])
    elif program in ("python", "python3"):
        yield from faults_of_python(words[1:])
    elif program not in SHELL and program != "for" and not command.is_marked:
        yield f"{program} is not run: say why in a comment before the block"


def faults_of_retort(words: list[str], is_whole: bool) -> Iterator[str]:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            if words and not words[0].startswith("-"):
                yield f"retort {words[0]} is no command"
            return
        command, words = command.commands[words[0]], words[1:]
    try:
        given = command.make_context(command.name, [word for word in words if word != "..."]).params
    except SystemExit:  # --help
        return
    except Exception as error:
        if is_whole or not re.search("Missing|requires an argument", str(error)):
            yield f"retort {command.name}: {error}"
        return
    config = given.get("config")
    if config and (ROOT / config).is_file():
        try:
            load_config(ROOT / config, given.get("set_") or [])
        except UserError as error:
            yield str(error)


def faults_of_make(words: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        wanted = rf"\$\({name}\)|^{name} [:?]?=" if is_variable else rf"^{name}:"
        if not re.search(wanted, makefile, re.MULTILINE):
            yield f"the Makefile has no {name}"


def faults_of_python(words: list[str]) -> Iterator[str]:
    if words[:1] == ["-m"] and words[1] in ("pytest", "venv"):
        return
    if words[0] in MADE:
        return
    script = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
    if not script.is_file():
        if not words[0].startswith("-") or words[0] == "-m":
            yield f"{script.relative_to(ROOT)} does not exist"
        return
    text = script.read_text()
    for word in words[1:]:
        option = word.partition("=")[0]
        if option.startswith("--") and f'"{option}"' not in text:
            yield f"{script.name} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_commands_exist(page: Path) -> None:
    assert not re.search("^```(bash|shell|console|zsh)", page.read_text(), re.MULTILINE), "call the block sh"
    found = [f"{shlex.join(one.words)}: {fault}" for one in commands_of(page.read_text()) for fault in faults(one)]
    assert found == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("retort runn examples/snips.yaml", "retort runn is no command"),
        ("retort run examples/snips.yaml --sett method.stages=2", "--sett"),
        ("retort run examples/snips.yaml --set method.stagess=2", "did you mean 'stages'"),
        ("retort run examples/nope.yaml", "examples/nope.yaml does not exist"),
        ("retort run", "onfig"),
        ("retort batch exprt config.yaml requests.jsonl", "exprt is no command"),
        ("retort predict models:/snips@champion rows.csv --device tpu", "tpu"),
        ("cd x && FOO=1 .venv/bin/retort repotr examples/snips.yaml > out.txt", "retort repotr"),
        ("retort serve models:/snips@champion --prt 1 > log 2>&1 &", "--prt"),
        ("docker compose exec worker-cpu retort doctro jobs/snips.yaml", "retort doctro"),
        ("make demoo", "no demoo"),
        ("make chaos MOMENT=3", "no MOMENT"),
        ("python infra/nope.py", "infra/nope.py does not exist"),
        ("python infra/setup_server.py \\\n  --nope 3", "no option --nope"),
        (".venv/bin/python -m benchmarks.reproduce.nope", "benchmarks/reproduce/nope.py does not exist"),
        ("kubectl apply -f infra/kubernetes/nope.yaml", "nope.yaml does not exist"),
        ("kubectl get pods", "kubectl is not run: say why"),
        ("python row.py examples/snips", "row.py does not exist"),
    ],
)
def test_a_wrong_command_is_seen(code: str, fault: str) -> None:
    told = [told for one in commands_of(f"Do this:\n```sh\n{code}\n```\n") for told in faults(one)]
    assert any(fault in one for one in told), told


def test_a_wrong_command_in_a_sentence_is_seen_and_a_mark_is_read() -> None:
    (wrong,) = commands_of("Give `retort plan --jsno` to it.")
    assert list(faults(wrong)) != []
    (part,) = commands_of("As `retort plan --json` tells.")
    assert list(faults(part)) == []
    (marked,) = commands_of("<!-- not run: needs a cluster -->\n```sh\nkubectl get pods\n```\n")
    assert marked.is_marked
    assert list(faults(marked)) == []
