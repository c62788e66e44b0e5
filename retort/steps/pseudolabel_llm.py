"""`pseudolabel` by an LLM that labels row by row: vLLM, an endpoint, or transformers.

The artifact holds the pool's labels, the failures, and the teacher's labels for the labeled set. Each of those rows is
labeled with the others as demonstrations, which shows how good the teacher is on rows whose label it has not seen.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import OWN_ROWS, RATIONALE_ROWS, ROWS, TEACHER_TOKENS, Pseudolabels, write_failures
from retort.config import Metric, Problem, StoreConfig
from retort.config.teachers import (
    AskAgainConfig,
    EndpointConfig,
    LlmTeacherConfig,
    PromptConfig,
    Rationales,
    SamplingConfig,
    TransformersConfig,
    VllmConfig,
)
from retort.io.parquet import PSEUDOLABELS, RATIONALES, Row, RowWriter, write_rows
from retort.metrics.calibration import expected_calibration_error, fit_temperature, label_probabilities
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.records.base import ArtifactRef, Example, ParseFailure
from retort.steps.base import CPU, Resources, Runtime, Step
from retort.steps.context import StepContext
from retort.steps.labeling_limits import check_success
from retort.store import StepOutput
from retort.teachers.clients import open_client
from retort.teachers.forecast import keep_pace
from retort.teachers.identity import teacher_identity
from retort.teachers.labeler import Labeler
from retort.teachers.ledger import Ledger
from retort.teachers.parsing import CompletionParser, Labeled, Parsed
from retort.teachers.request_builder import request_builder, sampling_seed
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
    constrained: bool
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
        if isinstance(self.config, EndpointConfig):
            return CPU
        return Resources(gpu="one" if isinstance(self.config, TransformersConfig) else "all", work_pool="teacher")

    def run(self, context: StepContext) -> StepOutput:
        teacher, problem = self.config, problem_for(self.problem)
        demonstrations = Examples.open(context.store, self.labeled)
        gold = demonstrations.gold()
        ledger = Ledger(context.store, self.identity)
        parser = CompletionParser(problem, self.metric, teacher)
        usage = Usage(teacher.prices, teacher.budget, teacher.max_tokens - teacher.sampling.max_tokens)
        labeler = Labeler(
            request_builder(problem, teacher, gold),
            parser,
            ledger,
            lambda: open_client(teacher, context.attempt, context.execution, context.store, self.endpoint_url),
            usage,
            context.progress,
        )
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
            details={"spent": usage.as_details(), "engine": facts, "damaged": ledger.damaged},
        )

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


def _label_pool(context: StepContext, outcomes: Iterator[tuple[Row, Parsed]]) -> tuple[int, Counter[str]]:
    """Write labels and failures. Returns (number of labeled rows, counts by reason)."""
    counts: Counter[str] = Counter()
    failures: dict[str, ParseFailure] = {}

    def rows() -> Iterator[Row]:
        for row, outcome in outcomes:
            counts["asked"] += 1
            if isinstance(outcome, ParseFailure):
                counts[outcome.reason] += 1
                failures[row["example_id"]] = outcome
            else:
                if outcome.top:
                    tokens.add(row["example_id"], outcome.top)
                if outcome.rationale is not None:
                    rationales.write({"example_id": row["example_id"], "rationale": outcome.rationale})
                yield _as_row(row, outcome)

    with (
        TokensWriter(context.folder / TEACHER_TOKENS) as tokens,
        RowWriter(context.folder / RATIONALE_ROWS, RATIONALES) as rationales,
    ):
        count = write_rows(context.folder / ROWS, PSEUDOLABELS, rows())
    write_failures(context.folder, failures)
    return count, counts


def _as_row(row: Row, outcome: Parsed) -> Row:
    if isinstance(outcome, ParseFailure):
        return {**row, "label": None, "confidence": 0.0, "labeler": "teacher"}
    soft = outcome.probabilities and np.asarray(outcome.probabilities, dtype=np.float16)
    labeled = {"label": outcome.label, "confidence": outcome.confidence, "probabilities": soft}
    return {**row, **labeled, "labeler": "teacher"}
