"""Opens the completion client for a teacher's configuration."""

from retort.config import ExecutionConfig, expand
from retort.config.teachers import EndpointConfig, LlmTeacherConfig, TransformersConfig, VllmConfig
from retort.store import Store
from retort.teachers.identity import teacher_weights
from retort.teachers.requests import OpenClient


def open_client(
    teacher: LlmTeacherConfig, attempt: int, execution: ExecutionConfig, store: Store, endpoint_url: str | None
) -> OpenClient:
    """The client for a teacher. `attempt` n > 0 is a retry, which uses less memory. Runs with the same `store` share
    the limits of an endpoint. `endpoint_url` is the address of the S3-compatible server, as written in the config.
    Imports are local to each kind: an endpoint needs no torch."""
    weights = teacher_weights(teacher, endpoint_url and expand(endpoint_url))
    match teacher:
        case EndpointConfig():
            from retort.teachers.endpoint.client import open_endpoint

            return open_endpoint(teacher, store)
        case VllmConfig() if weights:
            from retort.teachers.vllm.client import open_vllm

            return open_vllm(teacher, attempt, weights.address, weights.revision)
        case TransformersConfig() if weights:
            from retort.teachers.huggingface.client import open_transformers

            return open_transformers(teacher, attempt, weights.address, weights.revision, execution.device)
    raise AssertionError(f"a teacher of kind {type(teacher).__name__} cannot be asked")
