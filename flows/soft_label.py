"""Soft-label distillation of a classifier into a tiny student as a Prefect flow.

    result = distill(config)       the teacher's probabilities, out of fold; every arm trained on the same rows from the
                                   same seeds; the best on the dev rows is tested once on each test set
    result = challenge(result)     the exported student against the champion

The algorithm itself is in `retort/recipes/soft_label/pipeline.py`, and the code that all runs share in `flows/run.py`.
"""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.run import Finished, run_config, run_name
from retort.recipes.scope import Scope


@flow(name="soft-label", flow_run_name=run_name, persist_result=False)
async def soft_label(
    config: Annotated[str, Field(min_length=1)],
    limit: Annotated[int, Field(ge=0)] = 0,
    overrides: list[str] = [],  # noqa: B006 - the form in the UI shows it, and nobody changes it
    only: list[str] = [],  # noqa: B006
    from_stage: str = "",
    force: list[str] = [],  # noqa: B006
) -> Finished:
    """Distill the teacher's probabilities into a tiny student, beside everything that it is compared with.

    Args:
        config: The YAML file (kind: soft-label): a path below the project's folder, or s3://bucket/key.
        limit: Use only this many training rows, to try things out; 0 uses all that the file says.
        overrides: Any other field, each as FIELD=VALUE, such as grid.seeds=10.
        only: Make only these stages, such as hard/students; what they need must be in the store.
        from_stage: Everything before this stage must be in the store already, or the run stops at once.
        force: Make these stages again, with all that rests on them, though they are in the store.
    """
    fields = [*overrides, *([f"data.limit={limit}"] if limit else [])]
    scope = Scope(only=tuple(only), from_stage=from_stage or None, force=tuple(force))
    return await run_config(config, fields, "soft-label", scope)
