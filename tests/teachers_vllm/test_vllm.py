"""Real vLLM on the CPU with a tiny causal model. An engine takes 25 s to start, so most tests share one."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from retort.config import Problem, TextConfig
from retort.errors import ConfigError
from retort.problems import Constraint, problem_for
from retort.records.base import ParseFailure
from retort.teachers.requests import Completion, CompletionRequest, Rejection
from retort.teachers.vllm import client as opening
from retort.teachers.vllm.client import ENGINE, VllmClient, Wanted, engine_options, open_vllm
from retort.teachers.vllm.machine import Place
from vllm_teacher import CONTEXT, DEMONSTRATIONS, PYTHON, ROOT, config_for, gone, new_request

pytestmark = pytest.mark.teacher


def completions(client: VllmClient, *requests: CompletionRequest) -> list[Completion]:
    found = list(client.ask(iter(requests)))
    assert all(isinstance(completion, Completion) for completion in found), found
    return sorted(
        (completion for completion in found if isinstance(completion, Completion)), key=lambda a: (a.key, a.sample)
    )


def test_facts(client: VllmClient) -> None:
    assert client.facts["version"].startswith("vllm 0.")
    known = {
        name: client.facts[name] for name in ("dtype", "num_gpus", "max_model_len", "max_num_seqs", "chat_template")
    }
    expected = {"dtype": "float32", "num_gpus": 0, "max_model_len": CONTEXT, "max_num_seqs": 64, "chat_template": False}
    assert known == expected
    assert client.facts["start_seconds"] > 0


def test_a_choice_gives_legal_labels_only(client: VllmClient) -> None:
    labels = ("GetWeather", "PlayMusic", 'a "quoted" one', "Play")
    asked = [
        new_request(n, f"song {n}", constraint=Constraint(choice=labels), sampling_temperature=1.0) for n in range(20)
    ]
    found = completions(client, *asked)
    assert {completion.text for completion in found} <= set(labels)
    assert {completion.finish_reason for completion in found} == {"stop"}
    assert len(found) == 20


def test_free_text_is_held_to_its_pattern_or_schema(client: VllmClient) -> None:
    """A random model may write spaces between JSON's signs until its tokens are used up."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    for fields in ({"pattern": "[a-c]{3}|d+e"}, {"json_schema": {**schema, "additionalProperties": False}}):
        problem = problem_for(TextConfig.model_validate({"kind": "text", **fields}))
        asked = new_request(
            0, "a", constraint=problem.constraint("a"), sampling_temperature=1.0, samples=tuple(range(24))
        )
        found = completions(client, asked_with(asked, max_tokens=100))
        whole = [completion.text for completion in found if completion.finish_reason == "stop"]
        assert whole
        assert not [text for text in whole if isinstance(problem.parse("a", text), ParseFailure)]


def asked_with(asked: CompletionRequest, **changes: Any) -> CompletionRequest:
    return CompletionRequest(**{**{name: getattr(asked, name) for name in CompletionRequest.__slots__}, **changes})


def test_unconstrained_completions_end_with_the_line(client: VllmClient) -> None:
    limits = [3, 400] * 12
    asked = [new_request(n, f"song {n}", max_tokens=most, sampling_temperature=1.0) for n, most in enumerate(limits)]
    found = completions(client, *asked)
    assert all("\n" not in completion.text for completion in found)
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    assert all(completion.completion_tokens in (3, 400) for completion in found if completion.finish_reason == "length")


def test_samples_differ_and_repeat(client: VllmClient) -> None:
    def once() -> list[str]:
        return [
            completion.text
            for completion in completions(client, new_request(0, sampling_temperature=1.0, samples=(0, 1, 2)))
        ]

    first = once()
    assert len(set(first)) == 3
    assert once() == first
    (third,) = completions(client, new_request(1, sampling_temperature=1.0, samples=(2,)))
    assert third.text == first[2]


def test_what_cannot_be_completed_is_rejected_alone(client: VllmClient) -> None:
    asked = [
        new_request("a"),
        new_request("long", "word " * 2 * CONTEXT),
        new_request("bad", constraint=Constraint(grammar="root ::= nowhere")),
        new_request("surrogate", "song \ud800"),
        new_request("empty", ""),
        new_request("z"),
    ]
    found = list(client.ask(iter(asked)))
    refused = {completion.key: completion for completion in found if isinstance(completion, Rejection)}
    assert refused[b"long"].reason == "too-long"
    assert str(CONTEXT) in refused[b"long"].detail
    assert refused[b"bad"].reason == "bad-constraint"
    assert refused[b"surrogate"].reason == "rejected"
    assert {completion.key for completion in found if isinstance(completion, Completion)} == {b"a", b"empty", b"z"}
    assert len(found) == 6


def test_the_shared_prefix_is_computed_once(client: VllmClient) -> None:
    completions(client, new_request("first"))
    found = completions(client, *(new_request(n, f"the song {n}") for n in range(20)))
    assert all(completion.cached_tokens >= 128 for completion in found)  # a block, on the CPU
    assert all(completion.prompt_tokens > completion.cached_tokens for completion in found)


def test_requests_are_taken_as_they_are_needed(client: VllmClient) -> None:
    taken = 0

    def many() -> Iterator[CompletionRequest]:
        nonlocal taken
        for number in range(5000):
            taken += 1
            yield new_request(number, f"song {number}", max_tokens=4)

    answering = client.ask(many())
    next(answering)
    assert taken <= client.facts["window"] + 64
    answering.close()
    assert [completion.key for completion in completions(client, new_request("after"))] == [b"after"]


VERBALIZERS = ("a", "play", "play westbam", "SearchCreativeWork")


def test_scores_match_transformers(client: VllmClient, tiny_causal: Path) -> None:
    """`play` is one token, the last label is several; `play` is a prefix of another, so the empty line ends it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    tokens = [tokenizer.encode(text) for text in VERBALIZERS]
    assert [len(ids) for ids in tokens][:2] == [1, 1]
    assert tokens[2][:1] == tokens[1]
    assert len(tokens[3]) > 2
    end = tokenizer.encode("\n\n")[:1]
    paths = [tokens[0], [*tokens[1], *end], tokens[2], tokens[3]]
    plain = "".join(f"{item}\n{label}\n\n" for item, label in DEMONSTRATIONS)
    prompt = tokenizer.encode(f"Label the request.\n\n{plain}Input: play westbam\nOutput:\n")
    expected = by_hand(tiny_causal, prompt, paths)
    (completion,) = completions(client, new_request(0, verbalizers=VERBALIZERS))
    assert completion.scores == pytest.approx(expected, abs=1e-2)
    assert [math.exp(score) for score in completion.scores] == pytest.approx([math.exp(x) for x in expected], abs=1e-2)
    assert completion.text == VERBALIZERS[expected.index(max(expected))]
    assert completion.prompt_tokens == len(prompt)


def by_hand(model: Path, prompt: list[int], paths: Sequence[Sequence[int]]) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for path in paths:
        with torch.no_grad():
            logits = causal(torch.tensor([[*prompt, *path]])).logits[0]
        steps = logits.log_softmax(-1)[len(prompt) - 1 :]
        found.append(sum(float(steps[at, token]) for at, token in enumerate(path)))
    return found


LETTERS = ("a", "b", "c", "d", "e")  # one token each


@pytest.mark.parametrize("fields", [{}, {"constraint": Constraint(choice=LETTERS)}])
def test_top_logprobs_match_transformers(client: VllmClient, tiny_causal: Path, fields: dict[str, Any]) -> None:
    """They are at temperature 1, whatever the sampling temperature, and among what the constraint allows."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from retort.teachers.vllm.engine.toplogprobs import tokenizer_identity

    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    plain = "".join(f"{item}\n{label}\n\n" for item, label in DEMONSTRATIONS)
    prompt = tokenizer.encode(f"Label the request.\n\n{plain}Input: play westbam\nOutput:\n")
    (completion,) = completions(client, new_request(0, sampling_temperature=0.9, top_logprobs=4, **fields))
    assert completion.top
    assert (completion.top.k, completion.top.tokenizer) == (4, tokenizer_identity(tokenizer))
    token_ids = np.frombuffer(completion.top.token_ids, "<i4").tolist()
    assert len(token_ids) == completion.completion_tokens
    causal = AutoModelForCausalLM.from_pretrained(tiny_causal, dtype=torch.float32)
    with torch.no_grad():
        logits = causal(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
    if fields:
        allowed = [[tokenizer.encode(letter)[0] for letter in LETTERS], [tokenizer.eos_token_id]]
        assert len(token_ids) == 2
        forbidden = torch.ones_like(logits, dtype=torch.bool)
        for at, tokens in enumerate(allowed):
            forbidden[at, tokens] = False
        logits = logits.masked_fill(forbidden, -torch.inf)
    of_all = logits.log_softmax(-1)
    expected = of_all.topk(4)
    assert completion.logprob == pytest.approx(of_all[range(len(token_ids)), token_ids].sum().item(), rel=2e-2)
    logprobs = np.frombuffer(completion.top.logprobs, "<f4").reshape(-1, 4)
    np.testing.assert_allclose(logprobs, expected.values.numpy(), atol=2e-2)
    likeliest = np.frombuffer(completion.top.ids, "<i4").reshape(-1, 4)[:, 0]
    assert (likeliest == expected.indices[:, 0].numpy()).mean() > 0.9
    (without,) = completions(client, new_request(1, **fields))
    assert (without.top, without.logprob) == (None, None)


def test_hundreds_of_verbalizers(client: VllmClient) -> None:
    """More than vLLM takes in one request."""
    many = tuple(f"{first}{second}" for first in "abcdefghijklm" for second in "ABCDEFGHIJKLMNOPQRST")
    (completion,) = completions(client, new_request(0, verbalizers=many))
    assert len(completion.scores) == len(many)
    assert sum(math.exp(score) for score in completion.scores) < 1


PARENT = """
import sys
from pathlib import Path
from retort.teachers.vllm.client import open_vllm
from vllm_teacher import config_for, endless
model = Path(sys.argv[1])
with open_vllm(config_for(model), 0, str(model), None) as client:
    for _ in client.ask(endless()):
        print(client.engines[0].pid, flush=True)
"""


def test_a_killed_parent(tiny_causal: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tiny_causal)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as parent:
        assert parent.stdout
        engine = int(parent.stdout.readline())
        parent.kill()
        killed = time.monotonic()
        while not gone(engine):
            assert time.monotonic() - killed < 60
            time.sleep(0.05)


def test_an_encoder_is_no_teacher(tiny_encoder: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"teacher\.model = .*decoder-only"),
        open_vllm(config_for(tiny_encoder), 0, str(tiny_encoder), None),
    ):
        pass


def told(model: Path, names: Sequence[str], *settings: dict[str, Any]) -> list[list[Any]]:
    """What vLLM is told with each of the teacher's settings. No GPU is needed to see that."""
    options = [
        {**engine_options(Wanted(config_for(model, **own), 0, str(model), None)), "device": "cuda"} for own in settings
    ]
    code = f"""
import json, operator, session, sys
for options in json.loads(sys.argv[1]):
    print(json.dumps(operator.attrgetter(*{[*names]})(session._arguments(options)), default=lambda value: value.name))
"""
    heard = subprocess.run(
        [str(PYTHON), "-c", code, json.dumps(options)],
        env={**os.environ, "PYTHONPATH": str(ENGINE)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in heard.stdout.splitlines()[-len(settings) :]]


def test_vllm_still_has_what_spares_it_the_check_of_each_grammar() -> None:
    """Else labels would be as right, and several times as slow."""
    code = """
import inspect
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
assert "self._validate_structured_outputs(" in inspect.getsource(SamplingParams.verify)
assert {"_backend", "_backend_was_auto"} <= vars(StructuredOutputsParams(grammar="x")).keys()
"""
    subprocess.run([str(PYTHON), "-c", code], check=True)


def test_sizes_quantization_and_what_to_prepare_reach_vllm(tiny_causal: Path) -> None:
    sizes = {"tensor_parallel": 2, "pipeline_parallel": 3, "quantization": "fp8", "max_length": 512}
    names = ["tensor_parallel_size", "pipeline_parallel_size", "quantization", "max_model_len", "enforce_eager"]
    compilation = ["compilation_config.mode", "compilation_config.cudagraph_mode"]
    found = told(tiny_causal, [*names, *compilation], sizes, *({"preparation": own} for own in ("graphs", "none")))
    assert found == [
        [2, 3, "fp8", 512, False, None, None],
        [1, 1, None, None, False, 0, "FULL_DECODE_ONLY"],
        [1, 1, None, None, True, None, None],
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("tensor_parallel", 2), ("pipeline_parallel", 2), ("copies_per_gpu", 2), ("batch_invariant", True)],
)
def test_what_needs_gpus(field: str, value: int, tiny_causal: Path) -> None:
    with (
        pytest.raises(ConfigError, match=rf"teacher\.{field} = .*GPU.*; allowed"),
        open_vllm(config_for(tiny_causal, **{field: value}), 0, str(tiny_causal), None),
    ):
        pass


@pytest.mark.parametrize("python", ["/nowhere/bin/python", sys.executable, "/bin/false"])
def test_a_missing_environment(python: str, tiny_causal: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"teacher\.python = .*make teacher"),
        open_vllm(config_for(tiny_causal, python=python), 0, str(tiny_causal), None),
    ):
        pass


TREES = {"kind": "constituency", "labels": ["NP", "PP", "S", "VP"]}


@pytest.fixture(scope="module")
def counting(tiny_causal: Path) -> Iterator[VllmClient]:
    """Engines of their own: an engine has one backend for all grammars. The second one waits for the first, as one on
    the same GPU does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opening, "places", lambda *_: [Place("cpu"), Place("cpu", copy=1)])
        with open_vllm(config_for(tiny_causal), 0, str(tiny_causal), None) as opened:
            yield opened


@pytest.mark.parametrize(
    "schema",
    [
        {**TREES, "form": "labelled"},
        {**TREES, "form": "unlabelled"},
        {"kind": "slots", "intents": {"PlayMusic": ["artist", "track"], "Stop": []}},
        {"kind": "entities", "labels": ["WHO", "WHERE"]},
    ],
)
def test_a_counting_grammar_gives_labels(schema: dict[str, Any], counting: VllmClient) -> None:
    """A random model opens brackets as often as it may, and writes a word wherever it may; within the grammar's bounds
    every completion ends and is a label."""
    problem = problem_for(TypeAdapter(Problem).validate_python(schema))
    texts = ["The cat ( sat ) .", 'play "it" ::= // #', "play"]
    asked = [
        new_request(
            number,
            text,
            constraint=problem.constraint(text),
            sampling_temperature=temperature,
            samples=tuple(range(8 if temperature else 1)),
            max_tokens=1500,
        )
        for number, (text, temperature) in enumerate((text, heat) for text in texts for heat in (0.0, 1.0))
    ]
    found = completions(counting, *asked)
    text_of = {one.key: texts[number // 2] for number, one in enumerate(asked)}
    assert {completion.finish_reason for completion in found} == {"stop"}
    labels = [problem.parse(text_of[completion.key], completion.text) for completion in found]
    assert not [label for label in labels if isinstance(label, ParseFailure)]
    assert len(found) == len(texts) * 9


def test_a_grammar_that_cannot_be_compiled_fails_its_own_row_only(counting: VllmClient) -> None:
    """Also after another was accepted, from when on they are not checked before they are compiled."""
    problem = problem_for(TypeAdapter(Problem).validate_python({"kind": "entities", "labels": ["WHO"]}))
    fine = problem.constraint("play it")
    assert fine
    asked = [new_request(number, "play it", constraint=fine, max_tokens=200) for number in range(6)]
    completions(counting, *asked)
    bad = new_request(6, "play it", constraint=Constraint(lark="%llguidance {}\nstart: nowhere"))
    found = {one.key: one for one in counting.ask(iter([*asked, bad]))}
    refused = found.pop(bad.key)
    assert isinstance(refused, Rejection)
    assert refused.reason == "bad-constraint"
    assert all(isinstance(one, Completion) for one in found.values())
    assert len(found) == 6
