"""The program behind `retort predict --shard-rows`: labels a file in shards, here or on a work pool.

    python -m flows.predict JOB_AS_JSON SHARD_ROWS [POOL]

Checks come before importing Prefect, see `flows/launch.py`.
"""

import asyncio
import sys
import time

from flows.launch import in_terminal, thaw
from retort.config import ExecutionConfig, RecipeConfig, StoreConfig
from retort.errors import RetortError
from retort.io.terminal import say
from retort.recipes.base import Do
from retort.serving.addresses import FoundStudent
from retort.serving.files import PredictionJob, load_job, prepared
from retort.serving.shards import SplitTexts, gather_answers, split_texts, text_shards
from retort.serving.texts import Tally


def main() -> None:
    """Exit codes as in `retort.errors`; 130 after Ctrl-C."""
    job, rows_of_shard, pool = load_job(sys.argv[1]), int(sys.argv[2]), next(iter(sys.argv[3:]), None)
    started = time.monotonic()
    try:
        found, fields = prepared(job)
        split = split_texts(job, fields, rows_of_shard)
        with in_terminal():
            tally = asyncio.run(_flow(job, found, split, pool))
    except RetortError as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; shards that are finished are kept: the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    say(f"{tally}, by {found.name}, in {time.monotonic() - started:.0f} s", file=sys.stderr)


async def _flow(job: PredictionJob, found: FoundStudent, split: SplitTexts, pool: str | None) -> Tally:
    from prefect import flow

    @flow(name="predict", flow_run_name=f"predict by {found.name}", persist_result=False)
    async def predict() -> Tally:
        return await _predicted(job, found, split, pool)

    return await predict()


async def _predicted(job: PredictionJob, found: FoundStudent, split: SplitTexts, pool: str | None) -> Tally:
    from flows.run import task_runner
    from tasks.shards import do_shards
    from tasks.work_pools import check_work_pools

    thaw()
    execution = ExecutionConfig.model_validate({"device": job.device, "student_pool": pool})
    config = RecipeConfig(name="predict", store=StoreConfig(root=found.store.root), execution=execution)
    await check_work_pools(execution)
    do: Do = task_runner(config, [], lambda part: do(part))
    rows = await do(split)
    shards = await asyncio.to_thread(text_shards, job, found, rows)
    made = await do_shards("predict", shards, do)
    # The rows stay until `retort maintain` frees them: another prediction of the same file may be reading them.
    return await asyncio.to_thread(gather_answers, job, found, rows, shards, made)


if __name__ == "__main__":
    main()
