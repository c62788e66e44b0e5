"""`pseudolabel` by an LLM that labels row by row: vLLM, an endpoint, or transformers.

The artifact holds the pool's labels, the failures, and the teacher's labels for the labeled set. Each of those rows is
labeled with the others as demonstrations, which shows how good the teacher is on rows whose label it has not seen.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import OWN_ROWS, RATIONALE_ROWS, ROWS, TEACHER_TOKENS, Pseudolabels, written_failures
from retort.artifacts.shards import ShardRows, Unlabeled, write_unlabeled
from retort.config import Metric, Problem, StoreConfig
from retort.config.teachers import (
    AskAgainConfig,
    Constrained,
    EndpointConfig,
    LlmTeacherConfig,
    PromptConfig,
    Rationales,
    SamplingConfig,
    TransformersConfig,
    VllmConfig,
)
from retort.errors import StageFailed
from retort.io.parquet import EXAMPLES, PSEUDOLABELS, RATIONALES, Row, RowWriter, count_rows, write_rows
from retort.io.scratch import scratch
from retort.metrics.calibration import expected_calibration_error, fit_temperature, label_probabilities
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, Example, ParseFailure
from retort.steps.base import CPU, Inputs, Resources, Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput, Store
from retort.teachers.clients import open_client, start_engine_ahead
from retort.teachers.forecast import keep_pace
from retort.teachers.identity import teacher_identity
from retort.teachers.labeler import Labeler, pending_rows
from retort.teachers.ledger import Ledger
from retort.teachers.parsing import CompletionParser, Labeled, Parsed
from retort.teachers.request_builder import request_builder, sampling_seed
from retort.teachers.requests import OpenClient
from retort.teachers.top_logprobs import TokensWriter
from retort.teachers.usage import Usage

COMPACT_FROM = 20
"""The ledger's shards are merged at the end of a step if there are more than this."""

LlmTeacher = Annotated[VllmConfig | EndpointConfig | TransformersConfig, Field(discriminator="kind")]
_SHAPING = ("prompt", "sampling", "constrained", "labels", "verbalizers", "rationales", "ask_again")
"""Fields of a teacher's config that change its labels, apart from those in its identity."""


class PseudolabelLlm(Step):
    """Label the pool with an LLM. Completions that cannot be parsed are set aside."""

    kind = "pseudolabel"
    version = 2
    artifact = Pseudolabels

    problem: Problem
    teacher: Literal["asked"] = "asked"
    identity: dict[str, Any]
    """Identifies the model, see `teacher_identity`."""
    seed: int
    metric: Metric
    prompt: PromptConfig
    sampling: SamplingConfig
    constrained: Constrained
    labels: Literal["hard", "soft"]
    verbalizers: dict[str, str]
    rationales: Rationales = False
    ask_again: AskAgainConfig
    pool: ArtifactRef
    labeled: ArtifactRef
    """Gold-labeled rows, from which demonstrations are chosen."""
    config: Runtime[LlmTeacher]
    endpoint_url: Runtime[str | None]
    """Address of the S3-compatible server, as written."""
    shards: Runtime[tuple[ArtifactRef, ...]] = ()
    """What was asked about by other workers; empty if all is asked here."""

    @classmethod
    def by(
        cls,
        teacher: LlmTeacherConfig,
        *,
        name: str,
        problem: Problem,
        metric: Metric,
        pool: ArtifactRef,
        labeled: ArtifactRef,
        store: StoreConfig,
    ) -> Self:
        """`store` is needed for a model in a bucket."""
        return cls(
            name=name,
            problem=problem,
            identity=teacher_identity(teacher, store.server),
            seed=sampling_seed(teacher),
            metric=metric,
            **{field: getattr(teacher, field) for field in _SHAPING},
            pool=pool,
            labeled=labeled,
            config=teacher,
            endpoint_url=store.endpoint_url,
        )

    @property
    def fingerprint_version(self) -> int:
        """Since version 2, trees are salvaged, and what was cut, filtered or only thought is no label. Probabilities
        are as they were."""
        return self.version if self.labels == "hard" else 1

    @property
    def resources(self) -> Resources:
        if self.shards or isinstance(self.config, EndpointConfig):
            return CPU
        return Resources(gpu="one" if isinstance(self.config, TransformersConfig) else "all", work_pool="teacher")

    def run(self, context: StepContext) -> StepOutput:
        teacher, problem = self.config, problem_for(self.problem)
        demonstrations = Examples.open(context.store, self.labeled)
        gold = demonstrations.gold()
        labeler = self.labeler(context, gold)
        parser, ledger, usage = labeler.parser, labeler.ledger, labeler.usage
        with labeler:
            own = list(labeler.label(demonstrations.path))
            quality = self._quality(problem, gold, own)
            write_rows(context.folder / OWN_ROWS, PSEUDOLABELS, (_as_row(row, outcome) for row, outcome in own))
            parser.calibration_temperature = quality.get("calibration_temperature", 1.0)
            parser.outside_masses.clear()
            parser.counts.clear()
            pool = Examples.open(context.store, self.pool).path
            labeled, counts = _label_pool(context, labeler.label(pool))
            facts = labeler.facts
        keep_pace(context.store, ledger, usage)
        compacted = ledger.compact() if len(ledger.files()) > COMPACT_FROM else 0
        check_success(teacher.min_success_ratio, labeled, counts)
        if parser.outside_masses:
            quality["outside_mass"] = float(np.mean(parser.outside_masses))
        return StepOutput(
            rows=labeled,
            counts={**counts, **parser.counts, "failures": counts["asked"] - labeled, "compacted_shards": compacted},
            metrics={"success_share": labeled / counts["asked"], **quality},
            details=self._with_shards(
                context.store, {"spent": usage.as_details(), "engine": facts, "damaged": ledger.damaged}
            ),
        )

    def labeler(self, context: StepContext, gold: list[Example]) -> Labeler:
        """`gold` holds the labeled set."""
        teacher, problem = self.config, problem_for(self.problem)
        shards = (Unlabeled.open(context.store, ref) for ref in self.shards)
        return Labeler(
            request_builder(problem, teacher, gold),
            CompletionParser(problem, self.metric, teacher),
            Ledger(context.store, self.identity),
            lambda: self._client(context),
            Usage(teacher.prices, teacher.budget, teacher.max_tokens - teacher.sampling.max_tokens),
            context.progress,
            settled=dict(chain.from_iterable(shard.failures() for shard in shards)),
        )

    @property
    def has_engine(self) -> bool:
        """Whether an engine of its own is started for it, which takes all GPUs of the machine."""
        return isinstance(self.config, VllmConfig) and not self.shards

    def start_ahead(self, context: StepContext) -> bool:
        """Start the engine for a later `run` in this process, if any row must be asked about; returns whether."""
        with self.rows_to_split(context) as rows:
            is_needed = next(rows, None) is not None
        if is_needed:
            start_engine_ahead(self.config, self.endpoint_url)
        return is_needed

    def _client(self, context: StepContext) -> OpenClient:
        if self.shards:
            raise StageFailed(
                f"{self.name}: the ledger lacks completions that came in its shards, as if one of its files were "
                "damaged; the next run asks for what is missing"
            )
        return open_client(self.config, context.attempt, context.execution, context.store, self.endpoint_url)

    def _with_shards(self, store: Store, details: dict[str, Any]) -> dict[str, Any]:
        """Add what was spent in the shards."""
        of_shards = [store.manifest_of(ref).details for ref in self.shards]
        spent = {name: sum((one["spent"][name] for one in of_shards), own) for name, own in details["spent"].items()}
        engines = (one["engine"] for one in (details, *of_shards) if one["engine"])
        return {**details, "spent": spent, "engine": next(engines, {})}

    @property
    def most_rows(self) -> int:
        """No more rows than these are asked about."""
        return self.pool.rows + self.labeled.rows

    def rows_of_shard(self, shard_rows: int) -> int:
        return shard_rows

    @contextmanager
    def rows_to_split(self, context: StepContext) -> Iterator[Iterator[Row]]:
        """The rows that the ledger has no label for: on a new night the new ones, and those that were set aside. Of
        equal rows the first, so that no two shards ask about the same."""
        labeled, pool = (Examples.open(context.store, ref) for ref in (self.labeled, self.pool))
        with scratch("split") as folder, self.labeler(context, labeled.gold()) as labeler:
            both, columns = folder / "rows.parquet", ["example_id", "text"]
            write_rows(both, EXAMPLES, chain(labeled.rows(columns), pool.rows(columns)))
            yield labeler.unanswered(both)

    def shard(self, name: str, content: str, rows: ShardRows, share: float) -> "AskShard":
        """The step for one shard, whose rows have the digest `content` and are `share` of all, in [0, 1]. It may spend
        the same share of the budget."""
        budget = self.config.budget
        limits = {
            "tokens": budget.tokens and max(1, int(budget.tokens * share)),
            "money": budget.money and budget.money * share,
        }
        config = self.config.model_copy(update={"budget": budget.model_copy(update=limits)})
        of = self.model_copy(update={"config": config})
        return AskShard(name=name, labeling=self.key, content=content, rows=rows, of=of)

    def _quality(self, problem: ProblemKind, gold: list[Example], own: list[tuple[Row, Parsed]]) -> dict[str, float]:
        """How well the teacher's probabilities for the labeled set are calibrated, and the temperature that calibrates
        them; empty for hard labels. The error after calibration is measured on the same rows as the temperature was
        fitted on."""
        if self.labels != "soft":
            return {}
        golds = {example.example_id: example.label for example in gold}
        known = [(o, golds[row["example_id"]]) for row, o in own if isinstance(o, Labeled) and o.probabilities]
        if not known:
            return {}
        scores = np.log(np.maximum([outcome.probabilities or () for outcome, _ in known], 1e-300))
        indices = np.array([problem.targets("", str(label))[0] for _, label in known])
        temperature = fit_temperature(scores, indices)
        return {
            "calibration_temperature": temperature,
            "calibration_error_before": expected_calibration_error(label_probabilities(scores), indices),
            "calibration_error_after": expected_calibration_error(label_probabilities(scores, temperature), indices),
        }


class AskShard(Step):
    """Ask a teacher about one shard of the rows of a labeling. The completions go into its ledger, where the labeling
    finds them; the artifact holds the rows that got no label."""

    kind = "pseudolabel-shard"
    version = 1
    artifact = Unlabeled

    labeling: str
    """Key of the labeling. What got no label stays so for this labeling alone: the next one asks again."""
    content: str
    """Digest of the rows."""
    rows: Runtime[ShardRows]
    of: Runtime[PseudolabelLlm]

    @property
    def inputs(self) -> Inputs:
        return self.of.inputs

    @property
    def resources(self) -> Resources:
        return self.of.resources._replace(work_pool="teacher")

    def run(self, context: StepContext) -> StepOutput:
        labeler = self.of.labeler(context, Examples.open(context.store, self.of.labeled).gold())
        path = self.rows.path(context.store)
        with labeler:
            keys = islice(labeler.builder.keys(pending_rows(path), 0), 0, None, self.of.sampling.samples)
            failures = (
                (first["key"], outcome)
                for first, (_, outcome) in zip(keys, labeler.label(path), strict=True)
                if isinstance(outcome, ParseFailure)
            )
            count = write_unlabeled(context.folder, failures)
            facts = labeler.facts
        keep_pace(context.store, labeler.ledger, labeler.usage)
        details = {"spent": labeler.usage.as_details(), "engine": facts}
        return StepOutput(rows=count_rows(path), counts={"failures": count}, details=details)


def _label_pool(context: StepContext, outcomes: Iterator[tuple[Row, Parsed]]) -> tuple[int, Counter[str]]:
    """Write labels and failures. Returns (number of labeled rows, counts by reason)."""
    counts: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for row, outcome in outcomes:
            counts["asked"] += 1
            if isinstance(outcome, ParseFailure):
                counts[outcome.reason] += 1
                set_aside(row["example_id"], outcome)
            else:
                if outcome.top:
                    tokens.add(row["example_id"], outcome.top)
                if outcome.rationale is not None:
                    rationales.write({"example_id": row["example_id"], "rationale": outcome.rationale})
                yield _as_row(row, outcome)

    with (
        TokensWriter(context.folder / TEACHER_TOKENS) as tokens,
        RowWriter(context.folder / RATIONALE_ROWS, RATIONALES) as rationales,
        written_failures(context.folder) as set_aside,
    ):
        count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
    return count, counts


def _as_row(row: Row, outcome: Parsed) -> Row:
    if isinstance(outcome, ParseFailure):
        return {**row, "label": None, "confidence": 0.0, "labeler": "teacher"}
    soft = outcome.probabilities and np.asarray(outcome.probabilities, dtype=np.float16)
    labeled = {"label": outcome.label, "confidence": outcome.confidence, "probabilities": soft}
    return {**row, **labeled, "labeler": "teacher"}
