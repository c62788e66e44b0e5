"""The transformers teacher with a tiny causal model with random weights, and plain forward passes to check it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, PreTrainedTokenizerFast, Qwen2Config

from retort.config.teachers import TransformersConfig
from retort.teachers.huggingface.client import TransformersClient, open_transformers
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Turn
from retort.teachers.vllm.engine.rendering import render

SNIPS = Path(__file__).parents[2] / "examples" / "snips" / "labeled.jsonl"
ROWS = [json.loads(line) for line in SNIPS.read_text().splitlines()]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHARED = (
    Turn("system", "Name the intent of each request."),
    *(turn for row in ROWS[:6] for turn in (Turn("user", row["text"]), Turn("assistant", row["intent"]))),
)


def save(folder: Path, kind: str) -> Path:
    """`plain` and `chat` are tokenized like Qwen. `parting` is tokenized like GPT-2, where the tokens at the prefix's
    end depend on what follows, and the tokenizer adds special tokens before and after a text. `sliding` is the same
    with sliding-window attention over a window shorter than the prompt."""
    qwen = kind in ("plain", "chat")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    texts = [f"{row['text']}\n{row['intent']}\n\n" for row in ROWS]
    tokenizer.train_from_iterator([*texts, "wrong\nwrong\n"], trainer)
    if not qwen:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=marks[3 if kind == "chat" else 1])
    fast.chat_template = CHATML if kind == "chat" else None
    fast.save_pretrained(folder)
    options = {"vocab_size": len(fast), "num_key_value_heads": 2, "initializer_range": 0.2, "eos_token_id": 1, **SIZES}
    window = 40 if kind == "sliding" else None
    config: Any = Qwen2Config(**options) if qwen else MistralConfig(sliding_window=window, **options)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@contextmanager
def opened(folder: Path, attempt: int = 0, **fields: Any) -> Iterator[TransformersClient]:
    config = TransformersConfig(kind="transformers", model=str(folder), **fields)
    with open_transformers(config, attempt, str(folder), None, "cpu") as client:
        yield client


def requests(rows: Sequence[dict[str, str]] = ROWS[6:22], **fields: Any) -> list[CompletionRequest]:
    fields = {"max_tokens": 12, **fields}
    return [
        CompletionRequest(key=number.to_bytes(16), prompt=Prompt(SHARED, row["text"]), **fields)
        for number, row in enumerate(rows)
    ]


def asked(client: TransformersClient, wanted: Sequence[CompletionRequest]) -> dict[tuple[bytes, int], Completion]:
    completions = list(client.ask(iter(wanted)))
    found = {
        (completion.key, completion.sample): completion
        for completion in completions
        if isinstance(completion, Completion)
    }
    assert len(found) == len(completions) == sum(len(request.samples) for request in wanted)
    return found


def texts(completions: dict[tuple[bytes, int], Completion]) -> dict[tuple[bytes, int], str]:
    return {key: completion.text for key, completion in completions.items()}


class ByHand:
    """Whole prompts, one at a time, without any cache."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.chat = bool(self.tokenizer.chat_template)
        end = self.tokenizer.encode("<|im_end|>" if self.chat else "x\n\nx", add_special_tokens=False)
        self.end = end[0] if self.chat else end[1]

    def prompt(self, request: CompletionRequest) -> list[int]:
        shared = [{"role": turn.role, "content": turn.content} for turn in request.prompt.shared]
        prefix, before, after = render(self.tokenizer, shared)
        text = prefix + before + request.prompt.item + after
        if self.chat:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        token_ids = self.tokenizer.encode(text)
        return list(token_ids[:-1] if token_ids[-1] == 1 else token_ids)

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(torch.tensor([token_ids]), use_cache=False).logits[0]
        return logits

    def score(self, request: CompletionRequest, text: str, *, ended: bool) -> float:
        prompt = self.prompt(request)
        own = self.tokenizer.encode(text, add_special_tokens=False) + [self.end] * ended
        logs = self.logits(prompt + own).log_softmax(-1)
        return sum(float(logs[len(prompt) - 1 + at, token]) for at, token in enumerate(own))

    def completion(self, request: CompletionRequest) -> str:
        token_ids, prompt = list[int](), self.prompt(request)
        while len(token_ids) < request.max_tokens:
            token = int(self.logits(prompt + token_ids)[-1].argmax())
            token_ids.append(token)
            text = str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
            if token in (1, self.end) or ("\n" in text and not self.chat):
                break
        return text if self.chat else text.partition("\n")[0]

    def choice(self, request: CompletionRequest, choices: Sequence[str]) -> str:
        """Token by token, the likeliest of those that continue a choice."""
        bare = {text: self.tokenizer.encode(text, add_special_tokens=False) for text in choices}
        ended = {text: [*ids, self.end] if text == "correct" else ids for text, ids in bare.items()}
        token_ids, prompt = list[int](), self.prompt(request)
        while len(left := [text for text, ids in ended.items() if ids[: len(token_ids)] == token_ids]) > 1:
            logits = self.logits(prompt + token_ids)[-1]
            token_ids.append(
                max((ended[text][len(token_ids)] for text in left), key=lambda token: float(logits[token]))
            )
        return left[0]
