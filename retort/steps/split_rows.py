"""`split`: the rows of a step, in shards.

A step over many rows can be done by many workers: `SplitRows` writes its rows in shards, a step of its own works on
each shard, and the step itself, given what they made in its field `shards`, gathers it. It has the same key and writes
the same bytes as without shards, which are a way to execute it:

- An LLM's shards ask for completions, and the ledger stays the truth: the labeling finds there what it would have asked
  for. Only rows that the ledger has no label for are split.
- A student's shards keep its outcomes. Their key holds the student and the content of the rows, so where a pool has
  grown at its end, what the same student labeled before is found. Rows that are predicted together affect each other's
  rounding, so shards are whole windows of prediction.
"""

from itertools import chain, islice

from retort.artifacts.shards import NUM_ROWS, ShardRows
from retort.artifacts.shards import SplitRows as Rows
from retort.config import ExecutionConfig
from retort.io.parquet import EXAMPLES, write_rows
from retort.records.base import ArtifactRef
from retort.steps.base import Inputs, Runtime, Step
from retort.steps.context import StepContext
from retort.steps.cross_label import CrossLabel, LabelShard
from retort.steps.evaluate import EvaluateStudent
from retort.steps.pseudolabel_llm import AskShard, PseudolabelLlm
from retort.store import Manifest, StepOutput

Splittable = PseudolabelLlm | CrossLabel | EvaluateStudent
Shard = AskShard | LabelShard


class SplitRows(Step):
    """Split the rows of a step into shards."""

    kind = "split"
    version = 1
    artifact = Rows

    whole: str
    """Key of the step."""
    rows_of_shard: int
    of: Runtime[Splittable]

    @property
    def inputs(self) -> Inputs:
        return self.of.inputs

    def run(self, context: StepContext) -> StepOutput:
        sizes: list[int] = []
        with self.of.rows_to_split(context) as rows:
            for first in rows:
                shard = chain([first], islice(rows, self.rows_of_shard - 1))
                sizes.append(write_rows(context.folder / f"{len(sizes):06d}.parquet", EXAMPLES, shard))
        return StepOutput(rows=sum(sizes), details={NUM_ROWS: sizes})


def rows_of_shard(execution: ExecutionConfig, step: Step) -> int | None:
    """How many rows a shard of this step has; None if it is not to be split: because the config does not say so, its
    rows are too few, or it needs all GPUs of this machine, over which its engine spreads by itself."""
    if execution.shard_rows is None or not isinstance(step, Splittable):
        return None
    if step.resources.gpu == "all" and execution.teacher_pool is None:
        return None
    size = step.rows_of_shard(execution.shard_rows)
    return size if step.most_rows > size else None


def is_part(step: Step) -> bool:
    """Whether it is done for another step of the run."""
    return isinstance(step, SplitRows | Shard)


def shards_of(step: Splittable, split: ArtifactRef, manifest: Manifest) -> list[Shard]:
    """The steps of the shards. `manifest` is that of `split`."""
    sizes: list[int] = manifest.details[NUM_ROWS]
    files = zip(manifest.files, sizes, strict=True)
    return [
        step.shard(
            f"{step.name}/shard-{number}", file.sha256, ShardRows(split=split, file=file.path), size / sum(sizes)
        )
        for number, (file, size) in enumerate(files)
    ]
