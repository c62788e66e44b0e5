"""The undisturbed run that all others are compared with, and the figures that are printed at the end.

`make test` tries a few moments. `make chaos` tries all writes (RETORT_CHAOS_WRITES=0) and many moments.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chaos_runs import Kill, artifacts, config_of, contents, kept_completions, run
from endpoint_server import EndpointServer

MOMENTS = int(os.environ.get("RETORT_CHAOS_MOMENTS", "1"))
"""Random moments at which a run is killed."""
WRITES = int(os.environ.get("RETORT_CHAOS_WRITES", "2"))
"""Writes at which a run is killed, spread over the run; 0: every one."""
IS_WHOLE = WRITES == 0
MINUTES = float(os.environ.get("RETORT_CHAOS_MINUTES", "inf"))
"""How long each of these two goes on at most."""
FIGURES = Counter[str]()
COMPLETIONS = 64
"""Different texts of the pool and the labeled set."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("chaos")
        for name, count in FIGURES.items():
            terminalreporter.line(f"{name}: {count:,}")


def reply(body: dict[str, Any]) -> str:
    item = body["messages"][-1]["content"]
    return "up" if "great" in item or "good" in item else "down"


@dataclass(frozen=True)
class Chaos:
    values: dict[str, Any]
    """A config of tiny rows and students, without teacher and store."""
    server: EndpointServer
    """The teacher."""
    undisturbed: dict[str, Any]
    """What every run must end with, see `contents`."""
    writes: int
    """Writes of the undisturbed run."""
    seconds: float
    """How long it took."""

    def config(self, root: Path | str, **fields: Any) -> dict[str, Any]:
        return config_of(self.values, root, self.server.url, **fields)

    def killed(self, root: Path, kill: Kill) -> None:
        """Kill a run in an empty store, and run it again: nothing is lost, and nothing paid for again that was kept."""
        values, before = self.config(root), self.server.answered.total()
        ended = run(values, kill)
        died = ended.exit_code == -kill.sign
        assert died or ended.exit_code == 0, ended
        while self.server.under_way:  # what it still answers to the dead run was asked before, too
            time.sleep(0.01)
        left, answered = artifacts(root), self.server.answered.total() - before
        in_flight = answered - kept_completions(root)
        resumed = run(values)
        assert resumed.exit_code == 0, (kill, resumed)
        again = self.server.answered.total() - before - COMPLETIONS
        lost = [name for name, manifest in left.items() if artifacts(root).get(name) != manifest]
        FIGURES[f"runs killed by {kill.sign.name} {'at a write' if kill.at_write else 'at a random moment'}"] += died
        FIGURES["runs that had ended before their moment"] += not died
        FIGURES["artifacts complete at the kill"] += len(left)
        FIGURES["artifacts lost"] += len(lost)
        FIGURES["completions answered before the kills"] += answered
        FIGURES["of these not yet in the ledger"] += in_flight
        FIGURES["completions asked again"] += again
        FIGURES["resumed runs with the artifacts and scores of the undisturbed"] += contents(root) == self.undisturbed
        assert lost == []
        assert again <= in_flight, (kill, again, in_flight)
        assert contents(root) == self.undisturbed, kill


@pytest.fixture(scope="session")
def chaos(tiny_classes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with EndpointServer() as server:
        server.reply = reply
        server.delay_seconds = 0.04
        values = config_of(tiny_classes, folder / "warm-up", server.url)
        assert run(values).exit_code == 0  # forks from a server that has imported everything are quicker from now on
        started = time.monotonic()
        ended = run(config_of(tiny_classes, folder / "store", server.url))
        assert ended.exit_code == 0, ended
        seconds = time.monotonic() - started
        yield Chaos(tiny_classes, server, contents(folder / "store"), ended.writes, seconds)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The children's folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def chosen_writes(chaos: Chaos) -> list[int]:
    """Numbers of writes, from 1: all of the undisturbed run's in a random order, or a few that are spread over it."""
    every = range(1, chaos.writes + 1)
    return (
        random.Random(0).sample(every, len(every))
        if IS_WHOLE
        else [every[(2 * n + 1) * len(every) // (2 * WRITES)] for n in range(WRITES)]
    )


@pytest.fixture
def moments(chaos: Chaos) -> list[float]:
    """Random moments at which a run is killed, in seconds after its start."""
    chosen = random.Random(int(os.environ.get("RETORT_CHAOS_SEED", "0")))
    return [chosen.uniform(0.0, chaos.seconds) for _ in range(MOMENTS)]


@pytest.fixture
def in_time() -> Callable[[], bool]:
    """Whether there is time for more."""
    end = time.monotonic() + 60 * MINUTES
    return lambda: time.monotonic() < end


@pytest.fixture
def figures() -> Counter[str]:
    """What is printed at the end."""
    return FIGURES


@pytest.fixture
def only_whole() -> None:
    """Skips what `make test` has no time for."""
    if not IS_WHOLE:
        pytest.skip("only in `make chaos`")
