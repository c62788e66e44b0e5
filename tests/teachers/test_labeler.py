"""The labeler's rounds: what is requested, what is in the ledger, what is set aside. The teacher is scripted; ledger
and store are real."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from retort.config import ConstituencyConfig
from retort.config.teachers import EndpointConfig
from retort.errors import BudgetSpent, TeacherUnavailable
from retort.io.parquet import EXAMPLES, write_rows
from retort.problems import Constraint
from retort.problems.classification import Classification
from retort.problems.constituency import Constituency
from retort.records.base import Example, ParseFailure
from retort.store import Store
from retort.teachers.labeler import Labeler
from retort.teachers.ledger import Ledger
from retort.teachers.parsing import CompletionParser, Parsed
from retort.teachers.request_builder import Pending, request_builder
from retort.teachers.requests import Completion, CompletionClient, CompletionRequest, OpenClient, Rejection
from retort.teachers.usage import Usage

LABELED = [Example(f"l{n}", f"gold {n}", ["bad", "good"][n % 2]) for n in range(4)]
ENDPOINT = {"kind": "endpoint", "url": "http://localhost", "model": "m"}
Script = Callable[[CompletionRequest, int], str | Rejection]


class Scripted:
    """A client that completes requests by a script and counts them."""

    def __init__(self, script: Script, die_after: int | None = None) -> None:
        self.script, self.die_after = script, die_after
        self.asked: Counter[str] = Counter()
        self.requests: list[CompletionRequest] = []
        self.starts = 0
        self.facts: dict[str, Any] = {"num_gpus": 2}

    @contextmanager
    def open(self) -> Iterator[CompletionClient]:
        self.starts += 1
        yield self

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        for number, request in enumerate(requests):
            if number == self.die_after:
                raise TeacherUnavailable("the engine died")
            self.requests.append(request)
            for sample in request.samples:
                self.asked[request.prompt.item] += 1
                said = self.script(request, sample)
                if isinstance(said, Rejection):
                    yield said
                    break
                yield Completion(request.key, sample, said, "stop", 100, 90, 2)


class Desk:
    def __init__(self, folder: Path) -> None:
        self.store, self.rows = Store(str(folder / "store")), folder / "rows.parquet"
        self.spent: Usage | None = None

    def pool(self, *texts: str) -> None:
        rows = ({"example_id": f"u{n}", "text": text} for n, text in enumerate(texts))
        write_rows(self.rows, EXAMPLES, rows)

    def label(self, client: Scripted, **settings: Any) -> list[Parsed]:
        teacher = EndpointConfig.model_validate({**ENDPOINT, **settings})
        problem = Classification(["bad", "good"])
        self.spent = Usage(teacher.prices, teacher.budget)
        opened: OpenClient = client.open()
        labeler = Labeler(
            builder=request_builder(problem, teacher, LABELED),
            parser=CompletionParser(problem, "accuracy", teacher),
            ledger=Ledger(self.store, {"kind": "scripted"}),
            open_client=lambda: opened,
            usage=self.spent,
            progress=lambda *_: None,
        )
        with labeler:
            return [outcome for _, outcome in labeler.label(self.rows)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def good_or_bad(request: CompletionRequest, sample: int) -> str:
    return "good" if "fine" in request.prompt.item else "bad"


def reasons(outcomes: list[Parsed]) -> list[str]:
    return [o.reason if isinstance(o, ParseFailure) else o.label for o in outcomes]


def test_a_second_run_asks_nothing_and_starts_nothing(desk: Desk) -> None:
    desk.pool("fine day", "grim day", "fine day")
    first = Scripted(good_or_bad)
    assert reasons(desk.label(first)) == ["good", "bad", "good"]
    assert first.asked.total() == 2, "equal texts are paid for once"
    second = Scripted(good_or_bad)
    assert reasons(desk.label(second)) == ["good", "bad", "good"]
    assert (second.starts, second.asked.total()) == (0, 0)


def test_only_new_rows_are_requested(desk: Desk) -> None:
    desk.pool("fine day", "grim day")
    desk.label(Scripted(good_or_bad))
    desk.pool("new fine day", "grim day", "fine day")
    client = Scripted(good_or_bad)
    assert reasons(desk.label(client)) == ["good", "bad", "good"]
    assert list(client.asked) == ["Input: new fine day\nOutput:"]


def test_a_larger_limit_keeps_what_ended_properly(desk: Desk) -> None:
    desk.pool("fine day")
    desk.label(Scripted(good_or_bad), sampling={"max_tokens": 8})
    client = Scripted(good_or_bad)
    desk.label(client, sampling={"max_tokens": 64}, concurrency=3)
    assert client.starts == 0


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"sampling_temperature": 0.5}},
        {"prompt": {"item": "Text: {text}"}},
        {"prompt": {"demonstrations": 2}},
        {"prompt": {"instruction": "Say {schema}"}},
        {"constrained": False},
    ],
)
def test_what_changes_a_completion_is_requested_anew(desk: Desk, change: dict[str, Any]) -> None:
    desk.pool("fine day")
    desk.label(Scripted(good_or_bad))
    client = Scripted(good_or_bad)
    desk.label(client, **change)
    assert client.asked.total() == 1


def test_another_grammar_asks_nothing_anew() -> None:
    """Completions that were paid for stay usable when the grammar of the same labels changes."""

    class Stricter(Constituency):
        def constraint(self, text: str) -> Constraint:
            return Constraint(grammar='root ::= "(S " "a" ")"')

    config = ConstituencyConfig(kind="constituency", labels=["S", "NP"])
    teacher = EndpointConfig.model_validate({"kind": "endpoint", "url": "http://localhost", "model": "m"})
    pending, keys = Pending(0, "u0", "a"), []
    for problem in (Constituency(config), Stricter(config)):
        builder = request_builder(problem, teacher, [Example("l0", "a b", "(S a b)")])
        keys.append(list(builder.keys([pending], 0)))
    assert keys[0] == keys[1]


def test_a_row_without_a_label_is_retried_and_then_set_aside(desk: Desk) -> None:
    desk.pool("fine day", "riddle", "grim day")
    script = lambda request, _: "who knows" if "riddle" in request.prompt.item else good_or_bad(request, 0)  # noqa: E731
    client = Scripted(script)
    outcomes = desk.label(client, ask_again={"times": 2})
    assert reasons(outcomes) == ["good", "unknown-label", "bad"]
    assert isinstance(outcomes[1], ParseFailure)
    assert outcomes[1].raw == "who knows"
    assert client.asked["Input: riddle\nOutput:"] == 3
    temperatures = [request.sampling_temperature for request in client.requests if "riddle" in request.prompt.item]
    assert temperatures == [0.0, 0.7, 0.7]
    later = Scripted(good_or_bad)
    assert reasons(desk.label(later, ask_again={"times": 2})) == ["good", "bad", "bad"]
    assert later.asked == {"Input: riddle\nOutput:": 1}, "only what was set aside is asked again"


def test_a_retry_is_constrained_though_the_first_try_was_not(desk: Desk) -> None:
    desk.pool("riddle")
    client = Scripted(lambda request, _: "good" if request.constraint else "hm")
    assert reasons(desk.label(client, constrained=False)) == ["good"]
    assert [request.constraint is None for request in client.requests] == [True, False]


WHEN_NEEDED = {"constrained": "when-needed", "ask_again": {"times": 1}}


def held(request: CompletionRequest) -> tuple[bool, float | None]:
    return request.constraint is not None, request.sampling_temperature


def test_only_what_is_no_label_without_a_constraint_is_constrained(desk: Desk) -> None:
    """Then as if it had always been: first at the sampling temperature, once more at that of retries."""
    desk.pool("fine day", "riddle", "enigma")

    def script(request: CompletionRequest, sample: int) -> str:
        is_easy = "fine" in request.prompt.item or (request.constraint and "riddle" in request.prompt.item)
        return good_or_bad(request, sample) if is_easy else "hm"

    client = Scripted(script)
    outcomes = desk.label(client, **WHEN_NEEDED)
    assert reasons(outcomes) == ["good", "bad", "unknown-label"]
    tries = {word: [held(one) for one in client.requests if word in one.prompt.item] for word in ("fine", "enigma")}
    assert tries == {"fine": [(False, 0.0)], "enigma": [(False, 0.0), (True, 0.0), (True, 0.7)]}
    again = Scripted(good_or_bad)
    assert reasons(desk.label(again, **WHEN_NEEDED)) == ["good", "bad", "bad"]
    assert [held(request) for request in again.requests] == [(True, 0.7)], "only what was set aside is asked again"


def test_constrained_when_needed_reuses_what_was_paid_for_either_way(desk: Desk) -> None:
    desk.pool("fine day", "riddle")
    desk.label(
        Scripted(lambda q, _: "good" if "fine" in q.prompt.item else "hm"), constrained=False, ask_again={"times": 0}
    )
    desk.label(Scripted(good_or_bad))
    client = Scripted(good_or_bad)
    assert reasons(desk.label(client, **WHEN_NEEDED)) == ["good", "bad"]
    assert client.starts == 0


def test_a_retry_that_cannot_differ_is_not_made(desk: Desk) -> None:
    desk.pool("riddle")
    for constrained in ("when-needed", False):
        client = Scripted(lambda *_: "hm")
        ask_again = {"times": 3, "sampling_temperature": 0.0}
        assert reasons(desk.label(client, constrained=constrained, ask_again=ask_again)) == ["unknown-label"]
        assert [held(one) for one in client.requests][-1] == (True, 0.0)
        assert len(client.requests) == (2 if constrained else 1), "the unconstrained completion is in the ledger"


TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP"]))


@pytest.mark.parametrize(
    ("under_constraint", "label", "counts"),
    [("(S (NP a) b)", "(S (NP a) b)", {}), ("no tree", "(S a b)", {"salvaged": 1, "cut": 1})],
)
def test_a_label_that_lacks_words_is_tried_again(
    under_constraint: str, label: str, counts: dict[str, int], desk: Desk
) -> None:
    """It stays if the constrained completions are no better, and is not asked about in later runs."""
    desk.pool("a b")
    teacher = EndpointConfig.model_validate({**ENDPOINT, "constraint_style": "vllm", **WHEN_NEEDED})
    for _ in range(2):
        client = Scripted(lambda q, _: under_constraint if q.constraint else "(S a)")
        parser = CompletionParser(TREES, "bracket_f1", teacher)
        builder = request_builder(TREES, teacher, [Example("l0", "a b", "(S a b)")])
        opened: OpenClient = client.open()
        usage = Usage(teacher.prices, teacher.budget)
        labeler = Labeler(builder, parser, Ledger(desk.store, {}), lambda: opened, usage, lambda *_: None)  # noqa: B023
        with labeler:
            asked = client.requests
            ((_, outcome),) = labeler.label(desk.rows)
            assert {name: count for name, count in parser.counts.items() if count} == counts
            assert not list(labeler.unanswered(desk.rows))
        assert not isinstance(outcome, ParseFailure)
        assert TREES.render("a b", outcome.label) == label
    assert not asked


def test_a_rejected_row_is_not_retried_in_this_run(desk: Desk) -> None:
    desk.pool("long", "fine day")
    script = lambda q, _: Rejection(q.key, "too-long", "9 tokens, 8 fit") if "long" in q.prompt.item else "good"  # noqa: E731
    client = Scripted(script)
    assert reasons(desk.label(client)) == ["too-long", "good"]
    assert client.asked["Input: long\nOutput:"] == 1


def test_a_rejected_prompt_is_asked_once_for_all_its_copies(desk: Desk) -> None:
    desk.pool("long", "fine day", *["long"] * 9)
    script = lambda q, _: Rejection(q.key, "http-400", "too long") if "long" in q.prompt.item else "good"  # noqa: E731
    client = Scripted(script)
    outcomes = desk.label(client, sampling={"samples": 2, "sampling_temperature": 1.0}, ask_again={"times": 3})
    assert reasons(outcomes) == ["http-400", "good", *["http-400"] * 9]
    assert client.asked["Input: long\nOutput:"] == 1


def test_copies_of_a_riddle_share_its_tries(desk: Desk) -> None:
    desk.pool(*["riddle"] * 10)
    for run in range(2):
        client = Scripted(lambda *_: "who knows")
        assert reasons(desk.label(client)) == ["unknown-label"] * 10
        assert client.asked.total() == 2, f"run {run}: as often as a single row"


def test_a_death_keeps_what_came(desk: Desk) -> None:
    desk.pool(*(f"fine day {n}" for n in range(10)))
    with pytest.raises(TeacherUnavailable):
        desk.label(Scripted(good_or_bad, die_after=6))
    client = Scripted(good_or_bad)
    assert reasons(desk.label(client)) == ["good"] * 10
    assert client.asked.total() == 4


def test_samples_vote_and_their_share_is_the_confidence(desk: Desk) -> None:
    desk.pool("fine day")
    client = Scripted(lambda _, sample: ["good", "bad", "good", "nonsense"][sample])
    (outcome,) = desk.label(client, sampling={"samples": 4, "sampling_temperature": 1.0})
    assert outcome[:2] == ("good", 0.5)
    more = Scripted(lambda _, sample: "good")
    (outcome,) = desk.label(more, sampling={"samples": 6, "sampling_temperature": 1.0})
    assert outcome[:2] == ("good", pytest.approx(4 / 6))
    assert [request.samples for request in more.requests] == [(4, 5)], "the first four were paid for"


@pytest.mark.parametrize(
    ("budget", "prices"),
    [({"tokens": 1000}, {}), ({"money": 0.001}, {"prompt": 1.0})],
)
def test_a_budget_stops_before_it_is_passed_and_the_next_run_goes_on(
    desk: Desk, budget: dict[str, float], prices: dict[str, float]
) -> None:
    desk.pool(*(f"fine day {n}" for n in range(30)))
    client = Scripted(good_or_bad)
    with pytest.raises(BudgetSpent, match=r"stopped at budget\.\w+ = "):
        desk.label(client, budget=budget, prices=prices)
    assert desk.spent is not None
    assert 0 < client.asked.total() < 30
    assert desk.spent.prompt_tokens + desk.spent.completion_tokens <= 1100
    done = Scripted(good_or_bad)
    assert len(desk.label(done, prices=prices)) == 30
    assert done.asked.total() == 30 - client.asked.total()


def test_money_counts_cached_tokens_and_gpu_hours(desk: Desk) -> None:
    desk.pool("fine day")
    desk.label(Scripted(good_or_bad), prices={"prompt": 10.0, "cached_prompt": 1.0, "completion": 100.0})
    assert desk.spent is not None
    assert desk.spent.money == pytest.approx((10 * 10 + 90 * 1 + 2 * 100) / 1e6)
    assert desk.spent.num_gpus == 2


def test_a_demonstration_does_not_see_itself(desk: Desk) -> None:
    others = [Example(e.example_id, f"not {e.text}", None) for e in LABELED]
    rows = ({"example_id": e.example_id, "text": e.text} for e in [*LABELED, *others])
    write_rows(desk.rows, EXAMPLES, rows)
    client = Scripted(good_or_bad)
    desk.label(client)
    for request, example in zip(client.requests, LABELED, strict=False):
        shown = [turn.content for turn in request.prompt.shared]
        assert request.prompt.item == f"Input: {example.text}\nOutput:"
        assert request.prompt.item not in shown
        assert len(shown) == 1 + 2 * (len(LABELED) - 1)
    for request in client.requests[len(LABELED) :]:
        assert len(request.prompt.shared) == 1 + 2 * len(LABELED), "an id of another file is no demonstration's"
