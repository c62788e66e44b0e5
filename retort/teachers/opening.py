"""Starts whatever answers for a teacher."""

from retort.config import ExecutionConfig, expand
from retort.config.teachers import AskedConfig, EndpointConfig, TransformersConfig, VllmConfig
from retort.teachers.asking import OpenAsker
from retort.teachers.identity import teacher_weights


def open_asker(teacher: AskedConfig, attempt: int, execution: ExecutionConfig, endpoint_url: str | None) -> OpenAsker:
    """`attempt` n > 0 is a retry, with less memory taken. `endpoint_url` is that of the S3-compatible server, as
    written. Each kind's imports are its own: an endpoint needs no torch."""
    weights = teacher_weights(teacher, endpoint_url and expand(endpoint_url))
    match teacher:
        case EndpointConfig():
            from retort.teachers.endpoint.asker import open_endpoint

            return open_endpoint(teacher)
        case VllmConfig() if weights:
            from retort.teachers.vllm.asker import open_vllm

            return open_vllm(teacher, attempt, weights.address, weights.revision)
        case TransformersConfig() if weights:
            from retort.teachers.local.asker import open_transformers

            return open_transformers(teacher, attempt, weights.address, weights.revision, execution.device)
    raise AssertionError(f"a teacher of kind {type(teacher).__name__} cannot be asked")
