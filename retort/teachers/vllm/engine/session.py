"""A vLLM engine and the tasks in flight in it. Runs only in vLLM's environment.

Rows join the batch as they arrive and leave it as they finish. A task consists of vLLM requests: one per sample, or one
per node of the verbalizers' trie.
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
    from retort.teachers.vllm.engine.vllm_tasks import CompletionTask, Message, ScoringTask, Task, VllmRequest, is_lark
else:
    from failures import BadTemplate
    from prefixes import Prefix
    from rendering import has_chat_template
    from vllm_tasks import CompletionTask, Message, ScoringTask, Task, VllmRequest, is_lark

_LARK_BACKEND = "guidance"
"""vLLM's name of llguidance."""
WINDOW_BATCHES = 3
"""Requests that the engine holds, in multiples of those it computes concurrently; the others wait to replace them."""
CPU_CACHE_BYTES = 4 * 2**30
"""Most memory for keys and values on a machine without a GPU."""
GRAPH_SIZES = [1, 8, 32, 64, 128, 256, 512, 1024]
"""Rows of the decoding steps that are recorded where nothing is compiled. A smaller batch is padded to the next of
these, a larger one computed without a graph."""


def engine_config(options: Mapping[str, Any]) -> Any:
    """vLLM's complete configuration. Raises whatever vLLM raises if the model or an option does not fit."""
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
    # Without this, vLLM would take pickled weights where a model has no others.
    given["load_format"] = "dummy" if options["weights"] == "random" else "safetensors"
    if options["device"] == "cpu" or options["preparation"] == "none":
        given["enforce_eager"] = True  # on a CPU it would compile for a minute, and needs a compiler
    elif options["preparation"] == "graphs":
        graphs = {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": GRAPH_SIZES}
        given["compilation_config"] = {"mode": 0, **graphs}
    if options["device"] == "cpu" and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        most = min(CPU_CACHE_BYTES, psutil.virtual_memory().available // 2)
        given["kv_cache_memory_bytes"] = int(most * options["memory_share"])
    return EngineArgs(
        model=options["model"],
        trust_remote_code=False,
        runner="generate",  # otherwise vLLM would also accept an encoder, for embeddings
        tokenizer_mode="hf",
        dtype=options["dtype"],
        seed=options["seed"],
        tensor_parallel_size=options["tensor_parallel"],
        pipeline_parallel_size=options["pipeline_parallel"],
        gpu_memory_utilization=options["memory_share"],
        enable_prefix_caching=options["prefix_caching"],
        # xgrammar for choices and GBNF; Lark, which it refuses, goes to llguidance. An engine uses the backend of its
        # first constraint for all others, which are of the same kind: one teacher labels one problem.
        structured_outputs_config=StructuredOutputsConfig(backend="auto"),
        **{name: value for name, value in given.items() if value is not None},
    )


class CheckedParams(SamplingParams):  # type: ignore[misc]
    """Parameters whose constraint is a grammar in Lark, of the kind of one that vLLM has checked.

    vLLM checks a grammar in the one thread that takes requests, for as long as it takes to compile it, and then
    compiles it in other threads. Under one that does not compile there, a completion ends at once.
    """

    def _validate_structured_outputs(self, *_: Any, **__: Any) -> None:
        self.structured_outputs._backend, self.structured_outputs._backend_was_auto = _LARK_BACKEND, True


class Session:
    def __init__(self, config: Any, options: Mapping[str, Any]) -> None:
        self._engine = LLMEngine.from_vllm_config(config, usage_context=UsageContext.LLM_CLASS, disable_log_stats=True)
        self._config = config
        self._options = options
        self._tokenizer = self._engine.get_tokenizer()
        self._prefixes: dict[int, Prefix] = {}
        self._in_flight: dict[str, Task] = {}
        self._checks_lark = True
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
            "num_gpus": self._config.parallel_config.world_size if device == "cuda" else 0,
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
        return len(self._in_flight)

    def alive(self) -> Message | None:
        """The heartbeat's content, as counted after the last step: only the main thread may access the engine."""
        return {"unfinished": self.unfinished, "tokens": self._tokens} if self._in_flight else None

    def admit(self, message: Message) -> list[Message]:
        """Handle one message and return immediate replies. Raises BadTemplate for turns that the model's chat template
        rejects."""
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
            task = self._new_task(message)
            if problem := task.too_long(self._config.model_config.max_model_len):
                return [{"id": message["id"], "refused": "too-long", "detail": problem}]
            for name, request in task.vllm_requests.items():
                self._add(name, request)
                self._in_flight[name] = task
        except (VLLMValidationError, ValueError, TypeError) as error:  # also raised for text that is not valid Unicode
            reason = "bad-constraint" if message["constraint"] else "rejected"
            return [{"id": message["id"], "refused": reason, "detail": f"vLLM refuses it: {error}"}]
        return []

    def _add(self, name: str, request: VllmRequest) -> None:
        constraint: Any = request.parameters.get("structured_outputs")
        has_lark = constraint is not None and is_lark(constraint.grammar)
        kind = CheckedParams if has_lark and not self._checks_lark else SamplingParams
        self._engine.add_request(name, {"prompt_token_ids": request.token_ids}, kind(**request.parameters))
        if has_lark:
            self._checks_lark = constraint._backend != _LARK_BACKEND

    def _new_task(self, message: Message) -> Task:
        kind = ScoringTask if message["verbalizers"] else CompletionTask
        return kind(message, self._prefixes[message["shared"]], self._tokenizer, self._options)

    def step(self) -> list[Message]:
        """Let the engine compute one step and return the replies of the requests that finished."""
        replies: list[Message] = []
        for output in self._engine.step():
            task = self._in_flight.pop(output.request_id)
            self._finished_tokens += len(output.outputs[0].token_ids)
            replies += task.take(output)
        self._count()
        return replies

    def _count(self) -> None:
        if time.monotonic() - self._counted_at > 0.25:
            states = self._engine.output_processor.request_states.values()
            self._tokens = self._finished_tokens + sum(state.detokenizer.num_output_tokens() for state in states)
            self._counted_at = time.monotonic()

    def close(self) -> None:
        """Stop vLLM's child processes, which frees the resources they share."""
        self._engine.engine_core.shutdown()
