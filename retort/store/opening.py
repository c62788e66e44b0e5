"""Opens a config's store, and decides which of its errors are the config's fault."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from retort.config import RunSettings, StoreConfig
from retort.errors import ConfigError, StoreUnavailable
from retort.store.store import Store


def open_store(config: StoreConfig) -> Store:
    """Open a config's store, with `${VAR}` and `~` expanded."""
    return Store(config.address, config.server)


def usable_store(settings: RunSettings) -> Store:
    """Open a config's store. Raises ConfigError if an address cannot be valid."""
    config, endpoint_url = settings.store, settings.store.server
    if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
        raise ConfigError(f"store.endpoint_url = '{config.endpoint_url}': must begin with http:// or https://")
    if config.address.removesuffix("/") == "s3:/":
        raise ConfigError(f"store.root = '{config.root}': names no bucket; allowed: s3://bucket/prefix")
    return open_store(config)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn StoreUnavailable into ConfigError if a retry cannot help: the bucket does not exist or denies access.

    It stays StoreUnavailable if the bucket cannot be reached.
    """
    try:
        yield
    except StoreUnavailable as error:
        if _may_recover(error.__cause__):
            raise
        raise ConfigError(str(error)) from error


def _may_recover(cause: BaseException | None) -> bool:
    if isinstance(cause, FileNotFoundError | PermissionError):
        return False
    if isinstance(cause, OSError):
        return cause.errno != errno.EINVAL  # s3fs raises EINVAL for InvalidBucketName and the like
    return type(cause).__name__ not in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
