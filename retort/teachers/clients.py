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
    weights = teacher_weights(teacher, endpoint_url and expand(endpoint_url), identify=False)
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


def start_engine_ahead(teacher: LlmTeacherConfig, endpoint_url: str | None) -> None:
    """Start what the next `open_client` of this process with the same teacher will have to wait for."""
    weights = teacher_weights(teacher, endpoint_url and expand(endpoint_url), identify=False)
    if isinstance(teacher, VllmConfig) and weights:
        from retort.teachers.vllm.client import start_ahead

        start_ahead(teacher, weights.address, weights.revision)
