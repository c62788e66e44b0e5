"""Who labels first: the teachers, and how they are asked."""

import re
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from retort.config.base import Address, Settings, Text
from retort.config.training import GoldTrainingConfig, TrainingConfig

Share = Annotated[float, Field(ge=0, le=1)]
SamplingTemperature = Annotated[float, Field(ge=0, le=5)]


class RecordedConfig(Settings):
    """Completions that were made before, in the OpenAI batch output format, matched on `custom_id`."""

    kind: Literal["recorded"]
    completions: Address
    """The JSON-lines file (gzip allowed)."""
    min_success_ratio: Share = 0.9
    """The stage fails if fewer of the pool's rows than this get a label."""


FINETUNED_TRAINING = TrainingConfig(epochs=40)
"""Fifty rows need many epochs."""


class FinetunedConfig(Settings):
    """A student of the configured kind, trained on the labelled set alone: a weak teacher that runs anywhere."""

    kind: Literal["finetuned"]
    training: GoldTrainingConfig = FINETUNED_TRAINING
    """How the teacher is trained."""
    min_success_ratio: Annotated[Share, Field(exclude_if=lambda ratio: ratio == 0.9)] = 0.9
    """The stage fails if fewer of the pool's rows than this get a label; one that writes text may give none."""


def _template(*allowed: str) -> AfterValidator:
    """A text with `{field}`s, of which only `allowed` ones are known; the first must be there."""

    def check(text: str) -> str:
        names = ", ".join(f"{{{name}}}" for name in allowed)
        try:
            fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
        except ValueError as error:
            raise ValueError(f"{error}; allowed fields: {names}; write a brace of the text twice: {{{{") from None
        if unknown := [field for field in fields if field not in allowed]:
            raise ValueError(
                f"{{{unknown[0]}}} is no field of this template; allowed: {names}; write a brace of "
                "the text twice: {{"
            )
        return text

    return AfterValidator(check)


class PromptConfig(Settings):
    """What the teacher reads: instruction and demonstrations, the same bytes for every row, then the row."""

    instruction: Annotated[Text, _template("schema")] | None = None
    """Told first; may hold {schema}. Left out: the problem's own words."""
    item: Annotated[Text, _template("text")] = "Input: {text}\nOutput:"
    """How a row is put; must hold {text}. The answer begins on the next line."""
    demonstrations: Literal["all"] | Annotated[int, Field(ge=0)] = "all"
    """How many labelled rows are shown with their labels; they are the same for the whole run."""
    choose: Literal["diverse", "first"] = "diverse"
    """Where not all are shown: those that differ most from each other, or the first of the file."""

    @model_validator(mode="after")
    def _holds_the_row(self) -> Self:
        if "{text}" not in self.item:
            raise ValueError("item must hold {text}, else every row looks the same to the teacher")
        return self


class SamplingConfig(Settings):
    """How the teacher writes."""

    sampling_temperature: SamplingTemperature = 0.0
    """0: always the most probable token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most probable tokens that have this share together."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Most tokens of one completion; what was finished with a smaller limit is not asked for again."""
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    """Self-consistency: completions for each row; needs a sampling_temperature above 0."""
    choose: Literal["majority", "minimum-risk"] = "majority"
    """Of several samples: the label that most gave, or the one that scores best against the others."""
    top_logprobs: Annotated[int, Field(ge=0, le=256, exclude_if=lambda k: k == 0)] = 0
    """Keep this many of the likeliest next tokens at each token of a completion, with their log-probabilities, for
    students of the same tokenizer; 0: none. Needs vllm or transformers, labels: hard and one sample."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling_temperature == 0:
            raise ValueError("samples > 1 needs a sampling_temperature above 0: at 0 all samples are the same")
        return self


class AskAgainConfig(Settings):
    """What is done about a completion that gives no label."""

    times: Annotated[int, Field(ge=0, le=10)] = 1
    """How often such a row is asked again in one run, always constrained where the teacher can be."""
    sampling_temperature: SamplingTemperature = 0.7
    """Of the second and later tries."""


class PricesConfig(Settings):
    """What the teacher costs, in any one currency."""

    prompt: Annotated[float, Field(ge=0)] = 0.0
    """Money for a million prompt tokens."""
    cached_prompt: Annotated[float, Field(ge=0)] | None = None
    """Money for a million prompt tokens that the server had cached. Left out: as `prompt`."""
    completion: Annotated[float, Field(ge=0)] = 0.0
    """Money for a million completion tokens."""
    gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    """Money for an hour of one GPU, for engines that run here."""


class BudgetConfig(Settings):
    """What one run may spend on this teacher. It stops there cleanly; what came is kept, and the next run goes on."""

    tokens: Annotated[int, Field(gt=0)] | None = None
    """Prompt and completion tokens together."""
    money: Annotated[float, Field(gt=0)] | None = None
    """By `prices`."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """From the first question on; the engine's start does not count."""


class LlmTeacherConfig(Settings):
    """A causal language model that is asked row by row."""

    model: Text
    """A hub name, a folder, an s3:// address, pkg:package/folder; for an endpoint, the name that the server knows."""
    prompt: PromptConfig = PromptConfig()
    """What it reads."""
    sampling: SamplingConfig = SamplingConfig()
    """How it writes."""
    constrained: bool = True
    """Let the decoder write legal labels only, as far as the teacher can be held to them."""
    labels: Literal["hard", "soft"] = "hard"
    """soft: classification only; the probability of each class, from the log-probabilities of its verbalizer."""
    verbalizers: dict[Text, Text] = Field(default={})
    """soft: what the teacher writes for a class, by class; left out, its name."""
    ask_again: AskAgainConfig = AskAgainConfig()
    """What is done about a completion that gives no label."""
    min_success_ratio: Share = 0.9
    """The stage fails if fewer of the pool's rows than this get a label; the others are asked again by the next run."""
    prices: PricesConfig = PricesConfig()
    """For forecasts, budgets and reports."""
    budget: BudgetConfig = BudgetConfig()
    """What one run may spend."""

    @model_validator(mode="after")
    def _soft_labels_need_one_answer(self) -> Self:
        if self.verbalizers and self.labels != "soft":
            raise ValueError("verbalizers are for labels: soft")
        if self.labels == "soft" and self.sampling.samples > 1:
            raise ValueError("labels: soft reads probabilities, so sampling.samples must be 1")
        return self

    @model_validator(mode="after")
    def _top_logprobs_are_of_one_completion(self) -> Self:
        if self.sampling.top_logprobs and self.labels == "soft":
            raise ValueError(
                "sampling.top_logprobs are of a completion, and labels: soft writes none; use labels: hard"
            )
        if self.sampling.top_logprobs and self.sampling.samples > 1:
            raise ValueError("sampling.top_logprobs are of one completion, so sampling.samples must be 1")
        return self


class VllmConfig(LlmTeacherConfig):
    """vLLM engines of our own, one process for each GPU (or group of `tensor_parallel`), in vLLM's environment."""

    kind: Literal["vllm"]
    revision: Text = "main"
    """Of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: vLLM's dummy weights, for measuring speed."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: as the weights are."""
    quantization: Text | None = None
    """vLLM's name of a method (fp8, awq ...); left out, as the weights say."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of sampling."""
    batch_invariant: bool = False
    """The same completion whatever else is in the batch, at some speed. Without, temperature 0 can differ by night."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs that hold one copy of the model."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of a GPU's memory that the engine may take; lowered by a tenth after an out-of-memory."""
    max_length: Annotated[int, Field(ge=16)] | None = None
    """Context in tokens, prompt and completion. Left out: the model's."""
    max_sequences: Annotated[int, Field(ge=1)] | None = None
    """Completions written side by side; left out, vLLM's choice. Halved after an out-of-memory."""
    prefix_caching: bool = True
    """Compute the shared prefix once. Off only to measure what it brings."""
    python: Address = ".venv-teacher/bin/python"
    """The interpreter of vLLM's environment, which `make teacher` builds."""
    stall_seconds: Annotated[float, Field(gt=0)] = 300
    """An engine that gives no token for so long is taken for dead."""
    start_seconds: Annotated[float, Field(gt=0)] = 1800
    """How long an engine may take to start: load, compile, warm up."""


_VARIABLE_ONLY = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def _from_environment(text: str) -> str:
    if not _VARIABLE_ONLY.fullmatch(text):
        raise ValueError("must be read from the environment, as ${NAME}, so that no key lies in a file or a log")
    return text


class EndpointConfig(LlmTeacherConfig):
    """Any OpenAI-compatible server: a vLLM server, or a vendor."""

    kind: Literal["endpoint"]
    url: Address
    """Up to and with /v1."""
    api_key: Annotated[Address, AfterValidator(_from_environment)] | None = None
    """${NAME} of the environment variable that holds the key."""
    constraint_style: Literal["none", "vllm", "json-schema"] = "none"
    """How the server is told what a completion may be: not at all, vLLM's structured_outputs, or response_format."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests under way at once."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """The server's limit, if it has one."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """The server's limit, if it has one; prompt and completion tokens."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120
    """For one request."""
    retries: Annotated[int, Field(ge=0, le=100)] = 6
    """Tries more for a request that met 429, 5xx, a cut connection, a timeout or nonsense; with growing pauses."""

    @model_validator(mode="after")
    def _no_top_logprobs(self) -> Self:
        if self.sampling.top_logprobs:
            raise ValueError(
                "sampling.top_logprobs: an endpoint tells tokens by their text and not by their ids; use kind: vllm or "
                "transformers"
            )
        return self


class TransformersConfig(LlmTeacherConfig):
    """A causal model in this process, through transformers: slow, for laptops and small models."""

    kind: Literal["transformers"]
    revision: Text = "main"
    """Of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: only the architecture and the tokenizer are taken from `model`."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: as the weights are."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of sampling."""
    batch_rows: Annotated[int, Field(ge=1)] = 8
    """Rows computed side by side; halved after an out-of-memory."""


Member = Annotated[
    RecordedConfig | FinetunedConfig | VllmConfig | EndpointConfig | TransformersConfig, Field(discriminator="kind")
]


class EnsembleConfig(Settings):
    """Several teachers, whose labels of a row are merged."""

    kind: Literal["ensemble"]
    members: Annotated[list[Member], Field(min_length=2, max_length=16)]
    """The teachers. All are asked about every row."""
    merge: Literal["vote", "weighted"] = "vote"
    """vote: one vote each. weighted: by weights learned on the labelled set, which each member then labels with the
    other rows as demonstrations; recorded and fine-tuned members cannot do that fairly."""

    @model_validator(mode="after")
    def _weights_can_be_learned(self) -> Self:
        unfair = [member.kind for member in self.members if isinstance(member, RecordedConfig | FinetunedConfig)]
        if self.merge == "weighted" and unfair:
            raise ValueError(
                f"merge: weighted needs members that can be asked about the labelled set, which '{unfair[0]}' cannot "
                "fairly; use vote"
            )
        return self


Teacher = Annotated[
    RecordedConfig | FinetunedConfig | VllmConfig | EndpointConfig | TransformersConfig | EnsembleConfig,
    Field(discriminator="kind"),
]
