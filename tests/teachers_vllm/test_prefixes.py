"""A prompt tokenized in parts has the tokens of the whole. Needs no engine; imports the modules as the engine does."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retort.teachers.vllm.client import ENGINE
from retort.teachers.vllm.engine.rendering import render

TURNS = [
    {"role": "system", "content": "Label the request."},
    {"role": "user", "content": "Input: play some jazz\nOutput:"},
    {"role": "assistant", "content": "[IN:PLAY_MUSIC ]"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
JOINED = "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}"
"""A row follows a space, which byte-level tokenizers join with the word after it."""


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ENGINE))
    return importlib.import_module("prefixes")


@pytest.fixture
def tokenizer(tiny_causal: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_causal)


@pytest.mark.parametrize("template", [None, CHATML, JOINED])
@pytest.mark.parametrize("items", [["Input: rate this book\nOutput:"], ["play", "rate", "", " x"]])
def test_parts_are_the_whole(
    template: str | None, items: list[str], tokenizer: PreTrainedTokenizerFast, prefixes: Any
) -> None:
    tokenizer.chat_template = template
    prefix = prefixes.Prefix(tokenizer, TURNS)
    start, before, after = render(tokenizer, TURNS)
    for item in items:
        whole = tokenizer.encode(f"{start}{before}{item}{after}", add_special_tokens=False)
        assert prefix.prompt(item) == whole
    assert tokenizer.decode(prefix.prompt("play")).count("play some jazz") == 1


def test_special_tokens_begin_a_plain_text_and_never_end_it(tokenizer: PreTrainedTokenizerFast, prefixes: Any) -> None:
    end = [("<|end|>", tokenizer.convert_tokens_to_ids("<|end|>"))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=end
    )
    plain = tokenizer.encode(
        "".join(render(tokenizer, TURNS)).replace("\n\n\n", "\n\nplay\n"), add_special_tokens=False
    )
    assert prefixes.Prefix(tokenizer, TURNS).prompt("play") == [end[0][1], *plain]


def test_a_template_that_refuses(tokenizer: PreTrainedTokenizerFast, prefixes: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('not like this') }}"
    with pytest.raises(ValueError, match="not like this"):
        prefixes.Prefix(tokenizer, TURNS)


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_row_of_several_turns_follows_the_prefix(
    template: str | None, tokenizer: PreTrainedTokenizerFast, prefixes: Any
) -> None:
    tokenizer.chat_template = template
    earlier = [{"role": "user", "content": "play"}, {"role": "assistant", "content": "what?"}]
    found = prefixes.Prefix(tokenizer, TURNS).prompt("jazz", earlier)
    start, before, after = render(tokenizer, [*TURNS, *earlier])
    assert found == tokenizer.encode(f"{start}{before}jazz{after}", add_special_tokens=False)
