"""vLLM's engine and the questions under way in it. Runs in vLLM's environment only.

Rows join and leave the batch as they come and finish. Requests are vLLM's: one for each sample of a question, or for
each node of its verbalizers' trie.
"""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil
import vllm
from vllm import SamplingParams
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.llm_engine import LLMEngine

if TYPE_CHECKING:
    from retort.teachers.vllm.engine.failures import BadTemplate
    from retort.teachers.vllm.engine.prefixes import Prefix
    from retort.teachers.vllm.engine.rendering import has_chat_template
    from retort.teachers.vllm.engine.requests import Asked, Message, Scored, Written
else:
    from failures import BadTemplate
    from prefixes import Prefix
    from questions import Asked, Message, Scored, Written
    from rendering import has_chat_template

WINDOW_BATCHES = 3
"""Requests that the engine holds, in terms of those it computes side by side: the others wait to take their places."""
CPU_CACHE_BYTES = 4 * 2**30
"""Most that keys and values take of a machine's memory where there is no GPU."""


def engine_config(options: Mapping[str, Any]) -> Any:
    """vLLM's whole configuration. Raises whatever vLLM does where the model or an option does not fit."""
    config = _arguments(options).create_engine_config(UsageContext.LLM_CLASS)
    if options["halvings"] and not options["max_sequences"]:
        halved = max(1, config.scheduler_config.max_num_seqs >> options["halvings"])
        config = _arguments({**options, "max_sequences": halved}).create_engine_config(UsageContext.LLM_CLASS)
    if config.model_config.is_encoder_decoder:
        raise ValueError(f"the architecture {config.model_config.architectures} is no decoder")
    return config


def _arguments(options: Mapping[str, Any]) -> Any:
    given = {
        "max_model_len": options["max_length"],
        "max_num_seqs": options["max_sequences"],
        "revision": options["revision"],
        "tokenizer_revision": options["revision"],
        "quantization": options["quantization"],
    }
    if options["top_logprobs"]:
        given["max_logprobs"] = options["top_logprobs"]
    if options["weights"] == "random":
        given["load_format"] = "dummy"
    if options["device"] == "cpu":
        given["enforce_eager"] = True  # else it compiles for a minute, and needs a compiler
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            most = min(CPU_CACHE_BYTES, psutil.virtual_memory().available // 2)
            given["kv_cache_memory_bytes"] = int(most * options["memory_share"])
    return EngineArgs(
        model=options["model"],
        runner="generate",  # else an encoder is taken as well, for embeddings
        tokenizer_mode="hf",
        dtype=options["dtype"],
        seed=options["seed"],
        tensor_parallel_size=options["tensor_parallel"],
        gpu_memory_utilization=options["memory_share"],
        enable_prefix_caching=options["prefix_caching"],
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar"),
        **{name: value for name, value in given.items() if value is not None},
    )


class Session:
    def __init__(self, config: Any, options: Mapping[str, Any]) -> None:
        self._engine = LLMEngine.from_vllm_config(config, usage_context=UsageContext.LLM_CLASS, disable_log_stats=True)
        self._config = config
        self._options = options
        self._tokenizer = self._engine.get_tokenizer()
        self._prefixes: dict[int, Prefix] = {}
        self._under_way: dict[str, Asked] = {}
        self._finished_tokens = self._tokens = 0
        self._counted_at = 0.0
        self.window = WINDOW_BATCHES * config.scheduler_config.max_num_seqs
        """Requests that may be unfinished at once."""

    def facts(self) -> Message:
        model, scheduler = self._config.model_config, self._config.scheduler_config
        device = self._options["device"]
        return {
            "version": f"vllm {vllm.__version__}",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device,
            "device_name": current_platform.get_device_name() if device == "cuda" else "cpu",
            "num_gpus": self._options["tensor_parallel"] if device == "cuda" else 0,
            "max_model_len": model.max_model_len,
            "max_num_seqs": scheduler.max_num_seqs,
            "window": self.window,
            "cache_block_tokens": self._config.cache_config.block_size,
            "prefix_caching": bool(self._config.cache_config.enable_prefix_caching),
            "batch_invariant": bool(int(os.environ.get("VLLM_BATCH_INVARIANT", "0"))),
            "chat_template": has_chat_template(self._tokenizer),
        }

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    def alive(self) -> Message | None:
        """Of the last step: the main thread counts, since the engine is its own."""
        return {"unfinished": self.unfinished, "tokens": self._tokens} if self._under_way else None

    def admit(self, message: Message) -> list[Message]:
        """Take one message; what there is to answer at once. Raises BadTemplate for turns that the model's
        chat template refuses."""
        if "turns" in message:
            try:
                self._prefixes[message["shared"]] = Prefix(self._tokenizer, message["turns"])
            except ValueError as error:
                raise BadTemplate(str(error)) from None
            return []
        if "forget" in message:
            del self._prefixes[message["forget"]]
            return []
        try:
            asked = self._asked(message)
            if needed := asked.too_long(self._config.model_config.max_model_len):
                return [{"id": message["id"], "refused": "too-long", "detail": needed}]
            for name, request in asked.requests.items():
                prompt, parameters = {"prompt_token_ids": request.token_ids}, SamplingParams(**request.parameters)
                self._engine.add_request(name, prompt, parameters)
                self._under_way[name] = asked
        except (VLLMValidationError, ValueError, TypeError) as error:  # text that is no Unicode is among them
            reason = "bad-constraint" if message["constraint"] else "rejected"
            return [{"id": message["id"], "refused": reason, "detail": f"vLLM refuses it: {error}"}]
        return []

    def _asked(self, message: Message) -> Asked:
        kind = Scored if message["verbalizers"] else Written
        return kind(message, self._prefixes[message["shared"]], self._tokenizer, self._options)

    def step(self) -> list[Message]:
        """Let the engine compute once; what came to an end."""
        answers: list[Message] = []
        for output in self._engine.step():
            asked = self._under_way.pop(output.request_id)
            self._finished_tokens += len(output.outputs[0].token_ids)
            answers += asked.take(output)
        self._count()
        return answers

    def _count(self) -> None:
        if time.monotonic() - self._counted_at > 0.25:
            states = self._engine.output_processor.request_states.values()
            self._tokens = self._finished_tokens + sum(state.detokenizer.num_output_tokens() for state in states)
            self._counted_at = time.monotonic()

    def close(self) -> None:
        """End vLLM's own processes, which gives back what they share."""
        self._engine.engine_core.shutdown()
