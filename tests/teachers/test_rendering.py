"""Prompts: one prefix for all rows, byte by byte and token by token."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from retort.teachers.vllm.engine.rendering import completion_text, has_chat_template, render, row_text

SNIPS = Path(__file__).parents[2] / "examples" / "snips" / "labeled.jsonl"
ROWS = [json.loads(line) for line in SNIPS.read_text().splitlines()]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHARED = [
    {"role": "system", "content": "Name the intent of each request."},
    *(
        {"role": role, "content": content}
        for row in ROWS[:5]
        for role, content in (("user", f"Input: {row['text']}\nOutput:"), ("assistant", row["intent"]))
    ),
]
ITEMS = [f"Input: {row['text']}\nOutput:" for row in ROWS[5:]]
ODD = ["", " ", "\n", "\tx", "x ", "Input: <|im_end|>", "Input: é ü 漢字 🙂", "{text}", "{{ messages }}", "\u2063"]


def byte_level(pre_tokenizer: Any, template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    texts = [*(turn["content"] + "\n\n" for turn in SHARED), *(item + "\n" for item in ITEMS)]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=marks[2 if template else 0])
    fast.chat_template = template
    return fast


def qwen(template: str | None = None) -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(pre_tokenizers.Sequence([split, bytes_only]), template)


def prompts(tokenizer: Any) -> list[str]:
    prefix, before, after = render(tokenizer, SHARED)
    return [prefix + before + item + after for item in ITEMS + ODD]


@pytest.fixture(scope="module", params=[None, CHATML], ids=["plain", "chat"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return qwen(request.param)


def test_the_prefix_is_the_same_bytes_for_every_row(tokenizer: PreTrainedTokenizerFast) -> None:
    prefix, before, _ = render(tokenizer, SHARED)
    assert render(tokenizer, [dict(turn) for turn in SHARED])[0] == prefix
    for turn in SHARED:
        assert turn["content"] in prefix
    for item, prompt in zip(ITEMS + ODD, prompts(tokenizer), strict=True):
        assert prompt.encode().startswith(prefix.encode())
        assert prompt.removeprefix(prefix).startswith(before + item)


def test_prefix_and_rest_tokenized_apart_are_the_tokens_of_the_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    prefix, _, _ = render(tokenizer, SHARED)
    start = tokenizer.encode(prefix, add_special_tokens=False)
    for prompt in prompts(tokenizer)[: len(ITEMS)]:
        rest = tokenizer.encode(prompt.removeprefix(prefix), add_special_tokens=False)
        assert start + rest == tokenizer.encode(prompt, add_special_tokens=False)


def test_a_plain_prompt_in_full() -> None:
    prefix, before, after = render(qwen(), SHARED[:3])
    shown = f"Name the intent of each request.\n\nInput: {ROWS[0]['text']}\nOutput:\n{ROWS[0]['intent']}\n\n"
    assert (prefix, before, after) == (shown, "", "\n")
    assert render(qwen(), []) == ("", "", "\n")


def test_a_chat_prompt_is_the_templates_own() -> None:
    tokenizer = qwen(CHATML)
    assert has_chat_template(tokenizer)
    turns = [*SHARED, {"role": "user", "content": ITEMS[0]}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompts(tokenizer)[0] == expected
    assert expected.endswith("<|im_start|>assistant\n")


def test_a_model_that_can_think_is_told_to_answer_at_once() -> None:
    thinking = CHATML.replace(
        "assistant\n{% endif %}",
        "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    )
    assert render(qwen(thinking), SHARED)[2].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_without_a_system_role_gets_the_instruction_in_the_first_user_turn() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = qwen(refusing + CHATML)
    start = "<|im_start|>user\nName the intent of each request.\n\nInput: "
    assert render(tokenizer, SHARED)[0].startswith(start + ROWS[0]["text"])
    assert render(tokenizer, SHARED[:1])[0] == start.removesuffix("Input: ")


def test_a_template_that_refuses_all_turns() -> None:
    with pytest.raises(ValueError, match="refuses turns of user and assistant: never"):
        render(qwen("{{ raise_exception('never') }}"), SHARED)


@pytest.mark.parametrize(
    "write",
    [
        lambda text, calls: f"call {calls}: {text}",
        lambda text, calls: f"{text} ({len(text)} characters)",
        lambda text, calls: text.upper(),
        lambda text, calls: "Answer:",
    ],
    ids=["counter", "length", "upper case", "dropped"],
)
def test_a_template_that_does_not_let_the_row_stand_as_it_is_is_refused(write: Callable[[str, int], str]) -> None:
    class Counting:
        chat_template = "some"
        calls = 0

        def apply_chat_template(self, turns: list[dict[str, str]], **options: object) -> str:
            self.calls += 1
            return write("\n".join(turn["content"] for turn in turns), self.calls)

    with pytest.raises(ValueError, match="does not render the same turns to the same text"):
        render(Counting(), SHARED)


def test_a_row_of_several_turns_is_the_end_of_the_whole_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    earlier = [{"role": "user", "content": "play jazz"}, {"role": "assistant", "content": "which?"}]
    prefix, before, after = rendered = render(tokenizer, SHARED)
    assert row_text(tokenizer, SHARED, rendered, [], "bebop") == "bebop"
    prompt = prefix + before + row_text(tokenizer, SHARED, rendered, earlier, "bebop") + after
    more, ahead, behind = render(tokenizer, [*SHARED, *earlier])
    assert prompt == more + ahead + "bebop" + behind
    assert prompt.startswith(prefix)


def test_a_template_that_renders_other_turns_in_view_of_the_last_is_refused() -> None:
    tokenizer = qwen("{{ messages | length }}" + CHATML)
    rendered = render(tokenizer, SHARED)
    with pytest.raises(ValueError, match="renders the turns before a row's own otherwise"):
        row_text(
            tokenizer, SHARED, rendered, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "c"
        )


TEXTS = (" add it", "[IN:PLAY é 漢", "x", "")


def sentence_piece() -> PreTrainedTokenizerFast:
    """As of Llama 2: by themselves, words are decoded without the space before the first."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([*ITEMS, *TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("make", [qwen, sentence_piece])
def test_tokens_after_a_prompt_give_the_text_that_was_written(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    for text in TEXTS:
        prompt, token_ids = (tokenizer.encode(part, add_special_tokens=False) for part in ("play it", text))
        assert completion_text(tokenizer, prompt, token_ids) == text
        for written in (token_ids, token_ids[:-1], [*token_ids, *tokenizer.encode("漢", add_special_tokens=False)[:1]]):
            assert completion_text(tokenizer, prompt, written) == step_by_step(tokenizer, prompt, written)


def step_by_step(tokenizer: PreTrainedTokenizerFast, prompt: list[int], token_ids: list[int]) -> str:
    """As vLLM decodes."""
    stream = decoders.DecodeStream(ids=prompt, skip_special_tokens=True)
    return "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in token_ids)
