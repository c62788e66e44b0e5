"""Configuration of teachers, which label the pool first, and of how they are prompted."""

from string import Formatter
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from retort.config.base import Address, Retired, RetiredFields, Settings, Text
from retort.config.endpoint import (
    Body,
    ConstraintStyle,
    HeaderName,
    Headers,
    Url,
    check_constraining,
    from_environment,
)
from retort.config.training import GoldTrainingConfig

Share = Annotated[float, Field(ge=0, le=1)]
SamplingTemperature = Annotated[float, Field(ge=0, le=5)]
Rationales = Annotated[bool, Field(exclude_if=lambda given: not given)]
Constrained = bool | Literal["when-needed"]


class RecordedConfig(Settings):
    """Existing completions in the OpenAI batch output format, matched on `custom_id`."""

    kind: Literal["recorded"]
    completions: Address
    """The JSON-lines file (gzip allowed)."""
    rationales: Rationales = False
    """Whether each completion is JSON with a rationale before its label, {"rationale": "...", "label": ...}."""
    min_success_ratio: Share = 0.9
    """The stage fails if a smaller share of the pool's rows than this gets a label."""


FINETUNED_TRAINING = GoldTrainingConfig(epochs=40)
"""Fifty rows need many epochs."""


class FinetunedConfig(Settings):
    """A student of the configured kind, trained only on the labeled set: a weak teacher that runs anywhere."""

    kind: Literal["finetuned"]
    training: GoldTrainingConfig = FINETUNED_TRAINING
    """How the teacher is trained."""
    min_success_ratio: Annotated[Share, Field(exclude_if=lambda ratio: ratio == 0.9)] = 0.9
    """The stage fails if fewer of the pool's rows than this get a label; one that writes text may give none."""


def _template(*allowed: str) -> AfterValidator:
    """Validates a text template whose `{field}`s must all be `allowed`."""

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
    """The teacher's prompt: instruction and demonstrations, the same bytes for every row, followed by the row."""

    instruction: Annotated[Text, _template("schema")] | None = None
    """Comes first; may contain {schema}. Default: the problem's own instruction."""
    item: Annotated[Text, _template("text")] = "Input: {text}\nOutput:"
    """How a row is presented; must contain {text}. The completion begins on the next line."""
    demonstrations: Literal["all"] | Annotated[int, Field(ge=0)] = "all"
    """Number of labeled rows shown with their labels; they are the same for the whole run."""
    choose: Literal["diverse", "first"] = "diverse"
    """Which rows to show if not all: those that differ most from each other, or the first ones of the file."""

    @model_validator(mode="after")
    def _holds_the_row(self) -> Self:
        if "{text}" not in self.item:
            raise ValueError("item must hold {text}, else every row looks the same to the teacher")
        return self


class SamplingConfig(Settings):
    """How the teacher generates completions."""

    sampling_temperature: SamplingTemperature | None = 0.0
    """Temperature of sampling; 0 always takes the most probable token. null, for endpoints whose models refuse the
    field: it is never sent, also when a row is asked again, and neither is a seed."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: sample from the most probable tokens that together have this probability."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Maximum tokens of one completion. Completions that finished under a smaller limit are not requested again."""
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    """Self-consistency: number of completions per row; more than 1 needs a sampling_temperature above 0."""
    choose: Literal["majority", "minimum-risk"] = "majority"
    """How to choose among several samples: the most frequent label, or the one that scores best against the others."""
    top_logprobs: Annotated[int, Field(ge=0, le=256, exclude_if=lambda k: k == 0)] = 0
    """Number of likeliest next tokens to keep at each token of a completion, with their log-probabilities, for students
    with the same tokenizer; 0: none. Needs vllm or transformers, labels: hard and one sample."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling_temperature == 0:
            raise ValueError("samples > 1 needs a sampling_temperature above 0: at 0 all samples are the same")
        return self


class AskAgainConfig(Settings):
    """Retries of rows whose completion yields no label."""

    times: Annotated[int, Field(ge=0, le=10)] = 1
    """Number of retries per row in one run; always constrained if the teacher supports it."""
    sampling_temperature: SamplingTemperature = 0.7
    """Sampling temperature of the second and later attempts."""


class PricesConfig(Settings):
    """The teacher's prices, all in the same currency."""

    prompt: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens."""
    cached_prompt: Annotated[float, Field(ge=0)] | None = None
    """Price of a million prompt tokens that the server had cached. Default: same as `prompt`."""
    completion: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million completion tokens."""
    gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    """Price of one GPU for one hour, for local engines."""


class BudgetConfig(Settings):
    """Limits of one run with this teacher. A run stops cleanly at a limit; its completions are kept, and the next run
    continues."""

    tokens: Annotated[int, Field(gt=0)] | None = None
    """Limit on prompt and completion tokens together."""
    money: Annotated[float, Field(gt=0)] | None = None
    """Limit on the cost, in the currency of `prices`."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Limit on the seconds since the first request; the engine's start does not count."""


class LlmTeacherConfig(Settings):
    """A causal language model that labels row by row."""

    chooses_temperature: ClassVar[bool] = False
    """Whether a teacher of this kind has a temperature of its own if none is given."""

    model: Text
    """A hub name, a folder, an s3:// address or pkg:package/folder; for an endpoint, the model name on the server."""
    prompt: PromptConfig = PromptConfig()
    """The prompt."""
    sampling: SamplingConfig = SamplingConfig()
    """How completions are sampled."""
    constrained: Constrained = True
    """Constrain decoding to legal labels, as far as the teacher supports it. when-needed: each row is asked about
    without a constraint first, and under it only if its completion is no whole label. That is faster where each row has
    a grammar of its own and most labels are legal without it (slots, entities, constituency). false: only rows that are
    asked again, see `ask_again`, are constrained."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: one label. soft: classification only; the probability of each class, from its verbalizer's logprobs."""
    verbalizers: dict[Text, Text] = Field(default={})
    """For labels: soft, the text that stands for a class, by class. Default: the class's name."""
    rationales: Rationales = False
    """Ask why before asking what: each completion is JSON, {"rationale": "...", "label": ...}, and demonstrations are
    labeled rows with a rationale of their own (`data.columns.rationale`). A student that writes text can learn to write
    the rationales too, see `student.training.rationale_weight`."""
    ask_again: AskAgainConfig = AskAgainConfig()
    """Retries of rows whose completion yields no label."""
    min_success_ratio: Share = 0.9
    """The stage fails if a smaller share of the pool's rows than this gets a label; the next run retries the others."""
    prices: PricesConfig = PricesConfig()
    """Prices for forecasts, budgets and reports."""
    budget: BudgetConfig = BudgetConfig()
    """Limits of one run."""

    @model_validator(mode="after")
    def _soft_labels_need_one_answer(self) -> Self:
        if self.verbalizers and self.labels != "soft":
            raise ValueError("verbalizers are for labels: soft")
        if self.labels == "soft" and self.sampling.samples > 1:
            raise ValueError("labels: soft reads probabilities, so sampling.samples must be 1")
        return self

    @model_validator(mode="after")
    def _rationales_are_written(self) -> Self:
        if self.rationales and self.labels == "soft":
            raise ValueError("rationales are written before a label, and labels: soft writes none; use labels: hard")
        if self.rationales and self.sampling.top_logprobs:
            raise ValueError(
                "sampling.top_logprobs are of a whole completion, and with rationales a label is a part of it"
            )
        return self

    @model_validator(mode="after")
    def _temperature_is_known(self) -> Self:
        if self.sampling.sampling_temperature is None and not self.chooses_temperature:
            raise ValueError("sampling.sampling_temperature may be null for kind: endpoint only; give a number")
        return self

    @property
    def max_tokens(self) -> int:
        """The token limit of a completion, thoughts included."""
        return self.sampling.max_tokens

    @model_validator(mode="after")
    def _top_logprobs_are_of_one_completion(self) -> Self:
        if self.sampling.top_logprobs and self.labels == "soft":
            raise ValueError(
                "sampling.top_logprobs are of a completion, and labels: soft writes none; use labels: hard"
            )
        if self.sampling.top_logprobs and self.sampling.samples > 1:
            raise ValueError("sampling.top_logprobs are of one completion, so sampling.samples must be 1")
        return self


Preparation = Literal["full", "graphs", "none"]


class VllmConfig(LlmTeacherConfig):
    """Local vLLM engines, processes on each GPU (or group of GPUs that hold one copy), in vLLM's environment."""

    retired: ClassVar[RetiredFields] = {
        "prefix_caching": Retired(True, "the shared prefix is always computed once"),
    }

    kind: Literal["vllm"]
    revision: Text = "main"
    """Revision of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: vLLM's dummy weights, for measuring speed."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the computation; auto: that of the weights."""
    quantization: Text | None = None
    """vLLM's name of a quantization method (fp8, awq ...). Default: as the weights specify."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of sampling."""
    batch_invariant: bool = False
    """Make completions independent of the rest of the batch, at the cost of some speed. Otherwise even completions at
    temperature 0 can differ between runs."""
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Number of GPUs that share each layer of one copy of the model."""
    pipeline_parallel: Annotated[int, Field(ge=1, exclude_if=lambda number: number == 1)] = 1
    """Number of groups of `tensor_parallel` GPUs among which the layers of one copy are divided."""
    copies_per_gpu: Annotated[int, Field(ge=1, le=8, exclude_if=lambda number: number == 1)] = 1
    """Engines on each GPU, or group of GPUs, each with a copy of the model of its own. What an engine does on the CPU
    for each row bounds a small model on a large GPU; several engines do it side by side."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of a GPU's memory that its engines may use; reduced by a tenth after an out-of-memory error."""
    max_length: Annotated[int, Field(ge=16)] | None = None
    """Context length in tokens, prompt and completion. Default: the model's."""
    max_sequences: Annotated[int, Field(ge=1)] | None = None
    """Completions generated concurrently. Default: vLLM's choice. Halved after an out-of-memory error."""
    preparation: Annotated[Preparation, Field(exclude_if=lambda chosen: chosen == "full")] = "full"
    """What an engine on a GPU prepares when it starts. full: compiled kernels and CUDA graphs, for many rows. graphs:
    CUDA graphs of whole decoding steps, without compiling. none: nothing; it starts soonest, and writes slowest."""
    python: Address = ".venv-teacher/bin/python"
    """The interpreter of vLLM's environment, which `make teacher` builds."""
    stall_seconds: Annotated[float, Field(gt=0)] = 300
    """Seconds without a new token after which an engine is considered hung."""
    start_seconds: Annotated[float, Field(gt=0)] = 1800
    """Seconds that an engine may take to start: load, compile, warm up."""

    @property
    def gpus_per_copy(self) -> int:
        """Number of GPUs that hold one copy of the model."""
        return self.tensor_parallel * self.pipeline_parallel


class EndpointConfig(LlmTeacherConfig):
    """Any OpenAI-compatible server: a vLLM server or a vendor's."""

    chooses_temperature: ClassVar[bool] = True

    kind: Literal["endpoint"]
    url: Url
    """The server's address, up to and including /v1, or what stands in its place; a query (?api-version=...) is kept in
    every address that is made from it."""
    api_key: Annotated[Address, AfterValidator(from_environment)] | None = None
    """${NAME} of the environment variable that holds the API key."""
    api_key_header: Annotated[HeaderName, Field(exclude_if=lambda name: name == "Authorization")] = "Authorization"
    """The header that carries the API key: Authorization, as a bearer token; any other, such as api-key, as it is."""
    headers: Annotated[Headers, Field(exclude_if=lambda headers: not headers)] = Field(default={})
    """Further headers of each request. They are not part of any key; ${NAME} is read from the environment."""
    body: Annotated[Body, Field(exclude_if=lambda body: not body)] = Field(default={})
    """Further fields of each request's body, such as reasoning_effort; part of the ledger's keys."""
    constraint_style: ConstraintStyle = "none"
    """How constraints are sent to the server: not at all, as vLLM's structured_outputs, or as response_format."""
    token_limit_name: Annotated[
        Literal["max_tokens", "max_completion_tokens"], Field(exclude_if=lambda name: name == "max_tokens")
    ] = "max_tokens"
    """What the server calls the limit on a completion's tokens."""
    seed_name: Annotated[Literal["seed", "random_seed"] | None, Field(exclude_if=lambda name: name == "seed")] = "seed"
    """What the server calls the seed of sampling; null: it is not sent."""
    reasoning_tokens: Annotated[int, Field(ge=0, exclude_if=lambda tokens: tokens == 0)] = 0
    """Tokens that a reasoning model may think before it answers: added to sampling.max_tokens in the limit that is
    sent, and to the forecast of the first run."""
    samples_per_request: Annotated[int, Field(ge=1, le=64, exclude_if=lambda number: number == 64)] = 64
    """Most completions that the server gives for one request (n)."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Number of concurrent requests."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """The server's limit on requests per minute, if it has one. All runs that ask this address for this model and have
    the same store share it."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """The server's limit on prompt and completion tokens per minute, if it has one; shared in the same way."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120
    """Timeout of one request, in seconds."""
    retries: Annotated[int, Field(ge=0, le=100)] = 6
    """Retries of a request after 429, 5xx, a closed connection, a timeout or a malformed response, with backoff."""
    row_wait_seconds: Annotated[float, Field(gt=0, exclude_if=lambda seconds: seconds == 3600)] = 3600
    """Most seconds that one row may wait for its retries, in all."""
    run_wait_seconds: Annotated[float, Field(gt=0, exclude_if=lambda seconds: seconds == 14400)] = 14400
    """Most seconds that a run may wait, in all, while the server answers nothing but 429 and failures."""

    @property
    def max_tokens(self) -> int:
        return self.sampling.max_tokens + self.reasoning_tokens

    @model_validator(mode="after")
    def _key_has_one_header(self) -> Self:
        given = {name.lower() for name in self.headers}
        if self.api_key is not None and self.api_key_header.lower() in given:
            raise ValueError(f"headers: '{self.api_key_header}' is given by api_key; leave one of them out")
        return self

    @model_validator(mode="after")
    def _constrained_once(self) -> Self:
        check_constraining(self.body, self.constraint_style)
        return self

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
    """Revision of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: only the architecture and the tokenizer are taken from `model`."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the computation; auto: that of the weights."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of sampling."""
    batch_rows: Annotated[int, Field(ge=1)] = 8
    """Rows per batch; halved after an out-of-memory error."""


Member = Annotated[
    RecordedConfig | FinetunedConfig | VllmConfig | EndpointConfig | TransformersConfig, Field(discriminator="kind")
]


class EnsembleConfig(Settings):
    """Several teachers, whose labels of a row are merged."""

    kind: Literal["ensemble"]
    members: Annotated[list[Member], Field(min_length=2, max_length=16)]
    """The teachers. Each one labels every row."""
    merge: Literal["vote", "weighted", "locally-weighted"] = "vote"
    """vote: one vote each. weighted: weights learned on the labeled set, each row of which a member labels with the
    other rows as demonstrations; recorded and fine-tuned members cannot do that fairly. locally-weighted: the same, but
    each row of the pool has weights of its own, learned most from the labeled rows that are most like it."""

    @model_validator(mode="after")
    def _weights_can_be_learned(self) -> Self:
        unfair = [member.kind for member in self.members if isinstance(member, RecordedConfig | FinetunedConfig)]
        if self.merge != "vote" and unfair:
            raise ValueError(
                f"merge: {self.merge} needs members that can be asked about the labeled set, which '{unfair[0]}' "
                "cannot fairly; use vote"
            )
        return self


Teacher = Annotated[
    RecordedConfig | FinetunedConfig | VllmConfig | EndpointConfig | TransformersConfig | EnsembleConfig,
    Field(discriminator="kind"),
]
