"""Whole runs on conversations: recorded, asked and local teachers; students with and without a chat template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

import local_teacher
from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import Pseudolabels
from retort.artifacts.scores import Scores
from retort.config import CausalConfig, ChatConfig, MckdConfig, TextConfig
from retort.config.teachers import PromptConfig
from retort.data.completions import read_completions
from retort.errors import ConfigError, DataError
from retort.models.weights import find_weights
from retort.problems.chat import Chat, conversation_text
from retort.problems.text import FreeText
from retort.recipes import parse_config
from retort.recipes.mckd.checks import check
from retort.records.base import ParseFailure, RecordedCompletion
from retort.serving.addresses import find_student
from retort.serving.mlflow_student import MlflowStudent
from retort.serving.scorer import MOST_TEXTS, scorer
from retort.serving.student import load_student
from retort.serving.texts import MOST_CHARACTERS
from retort.students.generative import new_generative_student
from retort.teachers.endpoint.chat import parse_response
from retort.teachers.prompts import prompt_for
from retort.teachers.requests import Completion, CompletionRequest, Prompt
from retort.teachers.salvage import parse_completion
from tiny_data import LETTERS, TRAINING, write_lines
from whole_run import whole_run

Values = dict[str, Any]
CITIES = ["rome", "paris", "oslo"]
TOOL = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CHATML = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SIZES = {"labeled": 6, "unlabeled": 24, "test": 8}


def call(city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}


def chat_row(role: str, number: int) -> dict[str, Any]:
    """Every second row ends with a tool's result and is answered by a text, the others by a call."""
    city, who = CITIES[number % 3], f"{role}{LETTERS[number]}"
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": f"weather in {city}, {who}?"},
    ]
    if number % 2:
        turns += [
            {"role": "assistant", "content": None, "tool_calls": [call(city)]},
            {"role": "tool", "content": "sunny"},
        ]
        return {"id": who, "messages": turns, "answer": {"role": "assistant", "content": f"sunny in {city}"}}
    return {"id": who, "messages": turns, "answer": {"role": "assistant", "content": None, "tool_calls": [call(city)]}}


def batch_line(row: dict[str, Any]) -> dict[str, Any]:
    choice = {"message": row["answer"], "finish_reason": "stop"}
    return {"custom_id": row["id"], "response": {"status_code": 200, "body": {"choices": [choice]}}}


@pytest.fixture
def chat(tiny_causal: Path, tmp_path: Path) -> Values:
    """The student's tokenizer has a chat template. The labeled rows are Parquet, with lists of structs."""
    from transformers import AutoTokenizer

    model = Path(shutil.copytree(tiny_causal, tmp_path / "student"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    rows = {role: [chat_row(role, number) for number in range(size)] for role, size in SIZES.items()}
    for role in ("unlabeled", "test"):
        write_lines(tmp_path / f"{role}.jsonl", rows[role])
    pq.write_table(pa.Table.from_pylist(rows["labeled"]), tmp_path / "labeled.parquet")
    lines = [batch_line(row) for row in rows["unlabeled"]]
    lines[0]["response"]["body"]["choices"][0]["message"] = {
        "content": None,
        "tool_calls": [{"function": {"name": "fly"}}],
    }
    lines[1]["response"]["body"]["choices"][0].update({"finish_reason": "length"})
    write_lines(tmp_path / "completions.jsonl", lines)
    files = {"labeled": "labeled.parquet", "unlabeled": "unlabeled.jsonl", "test": "test.jsonl"}
    return {
        "name": "chat",
        "problem": {"kind": "chat", "tools": [TOOL]},
        "data": {
            **{role: str(tmp_path / name) for role, name in files.items()},
            "columns": {"text": "messages", "label": "answer"},
        },
        "teacher": {"kind": "recorded", "completions": str(tmp_path / "completions.jsonl"), "min_success_ratio": 0.5},
        "student": {
            "kind": "causal",
            "model": str(model),
            "max_target_length": 96,
            "training": {**TRAINING, "epochs": 4, "max_length": 200},
        },
        "method": {"stages": 1, "partitions": 2, "fine_tuning": {"kind": "never"}},
        "baselines": [],
        "evaluation": {"resamples": 100},
        "store": {"root": str(tmp_path / "store")},
        "execution": {"device": "cpu"},
    }


def test_a_whole_run(chat: Values, command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "chat.yaml"
    path.write_text(json.dumps(chat))
    code, out, err = command("doctor", path)
    assert code == 0, err
    run = whole_run(chat)
    failures = {
        row["example_id"]: row["reason"] for row in Pseudolabels.open(run.store, run.result.labels[0]).failures()
    }
    assert failures == {"unlabeleda": "unknown-tool", "unlabeledb": "cut-short"}
    labels = {row["example_id"]: row["label"] for row in Pseudolabels.open(run.store, run.result.labels[0]).rows()}
    assert labels["unlabeledc"] == '{"tool_calls":[{"arguments":{"city":"oslo"},"name":"weather"}]}'
    assert labels["unlabeledd"] == "sunny in rome"
    gold = {row.example_id: row.label for row in Examples.open(run.store, run.result.data.labeled).gold()}
    assert gold["labeleda"] == '{"tool_calls":[{"arguments":{"city":"rome"},"name":"weather"}]}'
    assert gold["labeledb"] == "sunny in paris"
    assert list(run.summary.final.scores) == ["exact_match", "chrf", "bleu", "rouge_l", "field_f1"]

    student = run.result.final_student.uri
    code, out, err = command("predict", student, chat["data"]["test"], "--text", "messages", "--device", "cpu")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    predicted = list(Scores.open(run.store, run.result.final_scores).predictions())
    expected = {row["example_id"]: row["predicted"] for row in predicted if row["predicted"] is not None}
    assert {one["id"] for one in answers} == {row["example_id"] for row in predicted}
    assert {one["id"]: one["label"] for one in answers if one["id"] in expected} == expected

    bad = tmp_path / "bad.jsonl"
    write_lines(
        bad, [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "robot", "content": "x"}]}]
    )
    code, out, err = command("predict", student, bad, "--text", "messages", "--max-bad", "1")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "its role is 'robot'" in err
    assert "1 no-conversation" in err

    code, _, err = command("predict", student, bad, "--text", "messages", "--probabilities")
    assert (code, "is an assistant's turn, which has no classes" in err) == (2, True)

    with TestClient(scorer(load_student(find_student(student, None), "cpu"))) as client:
        turns = chat_row("test", 0)["messages"]
        served = client.post("/predict", json={"texts": [turns, "hello"]})
        assert served.status_code == 200, served.text
        assert served.json()["predictions"][0]["label"] == answers[0]["label"]
        refused = client.post("/predict", json={"texts": [[{"role": "robot", "content": "x"}]]})
        assert (refused.status_code, "its role is 'robot'" in refused.text) == (422, True)
        for given, status, told in (
            ([{"role": "user", "content": "x" * MOST_CHARACTERS}], 413, "texts[0] has 100,0"),
            (" ", 422, "texts[0]: the text is empty"),
            ([], 422, "texts[0]: [] is no conversation"),
        ):
            refused = client.post("/predict", json={"texts": [given]})
            assert (refused.status_code, refused.json()["detail"][: len(told)]) == (status, told)
        assert client.post("/predict", json={"texts": [turns] * (MOST_TEXTS + 1)}).status_code == 413

    loaded = MlflowStudent(load_student(find_student(student, None), "cpu"), ("messages",))
    frame = pd.DataFrame({"messages": [json.dumps(turns), turns]})
    assert list(loaded.predict(frame)["label"]) == [answers[0]["label"]] * 2


def test_an_asked_teacher_reads_turns_as_turns(
    chat: Values, endpoint_server: Any, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    def reply(body: dict[str, Any]) -> str:
        last = body["messages"][-1]["content"]
        asked = body["messages"][-3]["content"] if "tool" in last else last
        city = next(city for city in CITIES if city in asked)
        return f"sunny in {city}" if "tool" in last else f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}'

    endpoint_server.reply = reply
    prompt = {"demonstrations": 2, "choose": "first"}
    asked = {"kind": "endpoint", "url": endpoint_server.url, "model": "m", "prompt": prompt}
    values = {**chat, "teacher": asked, "name": "asked"}
    run = whole_run(values)
    own = next(row for row in run.summary.systems if row.name == "teacher, labeled set")
    assert own.scores["exact_match"].value == 1.0
    assert own.scores["field_f1"].value == 1.0
    body = max(endpoint_server.bodies, key=lambda body: len(body["messages"]))
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", *["user", "assistant"] * 3, "user", "assistant", "user"]
    system, first, answered = (message["content"] for message in body["messages"][:3])
    assert '"name": "weather"' in system
    assert first.startswith("(A new conversation.)\n\nbe brief\n\nweather in ")
    assert answered.startswith('{"tool_calls":[{')
    assert body["messages"][-1]["content"] == "Result of the tool: sunny"

    path = tmp_path / "asked.yaml"
    path.write_text(json.dumps(values))
    code, out, _ = command("prompt", path, "--row", "unlabeledb", "--json")
    assert code == 0
    assert "Result of the tool: sunny" in out
    code, out, err = command("plan", path, "--json")
    assert code == 0, err


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_a_local_teacher_reads_the_turns_too(kind: str, tmp_path: Path) -> None:
    """The same completion as for the whole prompt as one item, without a prefix that rows share."""
    model, problem = local_teacher.save(tmp_path / "teacher", kind), Chat(ChatConfig(kind="chat"))
    turns = conversation_text(chat_row("test", 1)["messages"])
    prompt = prompt_for(problem, PromptConfig(), local_teacher.SHARED, turns)
    assert [turn.role for turn in prompt.earlier] == ["user", "assistant"]
    by_hand = local_teacher.ByHand(model)
    with local_teacher.opened(model) as client:
        request = CompletionRequest(key=bytes(16), prompt=prompt, max_tokens=8)
        (completion,) = client.ask(iter([request]))
        assert isinstance(completion, Completion)
        if kind == "chat":
            messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
            ids = by_hand.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            ends = {"system": "\n\n", "user": "\n", "assistant": "\n\n"}
            ids = by_hand.tokenizer.encode("".join(turn.content + ends[turn.role] for turn in prompt.turns))
        assert completion.prompt_tokens == len(ids)
        by_hand.prompt = lambda request: list(ids)  # type: ignore[method-assign]
        assert completion.text == by_hand.completion(request)


@pytest.mark.parametrize(
    "completion",
    [
        '{"tool_calls": [{"name": "fly", "arguments": {}}]}',
        '{\n "tool_calls": [\n  {"name": "fly"}\n ]\n}',
        'Calls: [{"name": "fly", "arguments": {}}',
        "<think>I could",
    ],
)
def test_no_part_of_a_wrong_call_becomes_a_label(completion: str) -> None:
    problem = Chat(ChatConfig(kind="chat", tools=[TOOL]))
    reading = parse_completion(problem, "", completion)
    is_text = completion.startswith("Calls")
    assert reading.outcome == completion if is_text else isinstance(reading.outcome, ParseFailure)


def test_a_call_is_no_label_of_other_problems(tmp_path: Path) -> None:
    text = FreeText(TextConfig(kind="text"))
    row = chat_row("unlabeled", 0)
    path = tmp_path / "completions.jsonl"
    write_lines(path, [batch_line(row)])
    (completion,) = read_completions(str(path))
    assert isinstance(completion, RecordedCompletion)
    assert completion.finish_reason == "tool_calls"
    recorded = parse_completion(text, "", completion.text, completion.finish_reason).outcome
    assert isinstance(recorded, ParseFailure)
    assert recorded.reason == "tool-calls"
    body = json.dumps({"choices": [{"message": row["answer"], "finish_reason": "stop"}]}).encode()
    request = CompletionRequest(key=bytes(16), prompt=Prompt((), "x"))
    (asked,) = parse_response(body, request, (0,), "none")
    assert (asked.text, asked.finish_reason) == (completion.text, "tool_calls")
    with_words = json.dumps({"content": "good", "tool_calls": [call("rome")]})
    beside = parse_completion(text, "", with_words, "tool_calls").outcome
    assert beside == "good", "words beside a call are a label as they were"
    for odd in ("good", '{"a": 1}', "[1]"):
        assert parse_completion(text, "", odd, "tool_calls").outcome == odd, "a vendor says so where nothing is called"
    cut = json.dumps({"choices": [{"message": row["answer"], "finish_reason": "length"}]}).encode()
    (asked,) = parse_response(cut, request, (0,), "none")
    found = parse_completion(Chat(ChatConfig(kind="chat")), "", asked.text, asked.finish_reason).outcome
    assert isinstance(found, ParseFailure)
    assert found.reason == "cut-short"


def test_a_student_reads_its_template_and_drops_the_oldest_turns(chat: Values) -> None:
    config = CausalConfig.model_validate(chat["student"])

    def source(max_length: int, turns: list[dict[str, Any]]) -> tuple[str, bool]:
        cut = config.model_copy(update={"training": config.training.model_copy(update={"max_length": max_length})})
        problem = Chat(ChatConfig(kind="chat"))
        student = new_generative_student(cut, find_weights(cut), pretrained=True, problem=problem)
        ((ids, is_cut),) = student._sources([conversation_text(turns)])
        assert len(ids) <= max_length
        return student.tokenizer.decode(ids), is_cut

    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather in rome"},
        {"role": "assistant", "content": "sunny"},
        {"role": "user", "content": "and paris"},
    ]
    whole = "[system] be brief\n[user] weather in rome\n[assistant] sunny\n[user] and paris\n[assistant]"
    assert source(256, turns) == (whole, False)
    assert source(60, turns) == ("[system] be brief\n[user] and paris\n[assistant]", True)
    text, is_cut = source(20, turns)
    assert (text.endswith("paris\n[assistant]"), is_cut) == (True, True)


def test_a_student_without_a_template_reads_names(chat: Values, tiny_t5: Path, tiny_causal: Path) -> None:
    for kind, model in (("seq2seq", tiny_t5), ("causal", tiny_causal)):
        student = {**chat["student"], "kind": kind, "model": str(model)}
        run = whole_run({**chat, "student": student})
        assert run.summary.final.scores["chrf"].n == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"student": {"kind": "sequence-classification", "model": "x"}}, "cannot learn 'chat'"),
        ({"problem": {"kind": "chat"}, "evaluation": {"metrics": ["field_f1"]}}, "measures calls; give problem.tools"),
        (
            {"teacher": {"kind": "endpoint", "url": "http://x", "model": "m", "prompt": {"item": "Q: {text}"}}},
            "the turns of a chat are given as they are",
        ),
        ({"teacher": {"kind": "ensemble", "members": [{"kind": "recorded", "completions": "x"}] * 2}}, "cannot vote"),
    ],
)
def test_what_does_not_fit_is_told(chat: Values, changes: Values, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config({**chat, **changes}, "job.yaml")


def test_rows_that_are_no_conversations_are_told_with_their_place(chat: Values, tmp_path: Path) -> None:
    write_lines(tmp_path / "bad.jsonl", [{"id": "a", "messages": [{"role": "user", "content": ""}]}])
    values = {**chat, "data": {**chat["data"], "test": str(tmp_path / "bad.jsonl")}}
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1: 'messages': turn 1: the user says nothing"):
        check(MckdConfig.model_validate(values))
