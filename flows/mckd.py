"""Multistage collaborative knowledge distillation as a Prefect flow.

    data   = ingest_data(config)            labeled set, pool, test rows
    result = distill(config, data)          the teacher labels the pool; in each stage, k students are trained on
                                            disjoint partitions, each labels the rows that it has not seen, and the new
                                            labels are kept if they prove better; then the final student; beside
                                            it, the baselines in the config
    result = challenge(result)              the final student against the champion

The algorithm itself is in `retort/recipes/mckd/pipeline.py`, and the code that all runs share is in `flows/run.py`.
"""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.run import Finished, run_config, run_name
from retort.recipes.scope import Scope


@flow(name="mckd", flow_run_name=run_name, persist_result=False)
async def mckd(
    config: Annotated[str, Field(min_length=1)],
    # 0 instead of None: for a union, the form in the UI says only that a value is wrong, not what is allowed.
    stages: Annotated[int, Field(ge=0, le=20)] = 0,
    partitions: Annotated[int, Field(ge=0, le=64)] = 0,
    limit: Annotated[int, Field(ge=0)] = 0,
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    only: list[str] = [],  # noqa: B006
    from_stage: str = "",
    force: list[str] = [],  # noqa: B006
) -> Finished:
    """Distill a teacher into a final student, and say how good every stage was.

    Args:
        config: The YAML file: a path below the project's folder, or s3://bucket/key.
        stages: Instead of method.stages in the file; 1 is vanilla distillation, 0 leaves it as it is there.
        partitions: Instead of method.partitions in the file: students trained side by side; 0 leaves it as it is there.
        limit: Use only this many rows of the pool, to try things out; 0 uses all that the file says.
        overrides: Any other field, each as FIELD=VALUE, such as student.training.epochs=3.
        only: Make only these stages, such as stage1/student-0; what they need must be in the store.
        from_stage: Everything before this stage must be in the store already, or the run stops at once.
        force: Make these stages again, with all that rests on them, though they are in the store.
    """
    flat = {"method.stages": stages, "method.partitions": partitions, "data.limit": limit}
    fields = [*overrides, *(f"{name}={value}" for name, value in flat.items() if value)]
    scope = Scope(only=tuple(only), from_stage=from_stage or None, force=tuple(force))
    return await run_config(config, fields, "mckd", scope)
