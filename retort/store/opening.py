"""Opening the store that a config names, and whose fault it is where that fails."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from retort.config import RunSettings, StoreConfig, expand
from retort.errors import ConfigError, StoreUnavailable
from retort.store.store import Store


def open_store(config: StoreConfig) -> Store:
    """The store of a config, its `${VAR}` expanded."""
    return Store(expand(config.root), config.server)


def usable_store(settings: RunSettings) -> Store:
    """Raises ConfigError for a server's address that cannot be one."""
    config, endpoint_url = settings.store, settings.store.server
    if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
        raise ConfigError(f"store.endpoint_url = '{config.endpoint_url}': must begin with http:// or https://")
    if expand(config.root).removesuffix("/") == "s3:/":
        raise ConfigError(f"store.root = '{config.root}': names no bucket; allowed: s3://bucket/prefix")
    return open_store(config)


@contextmanager
def refusals() -> Iterator[None]:
    """A bucket that does not exist or refuses is the config's fault, and no retry heals it: ConfigError.

    One that cannot be reached stays StoreUnavailable.
    """
    try:
        yield
    except StoreUnavailable as error:
        if _heals(error.__cause__):
            raise
        raise ConfigError(str(error)) from error


def _heals(cause: BaseException | None) -> bool:
    if isinstance(cause, FileNotFoundError | PermissionError):
        return False
    if isinstance(cause, OSError):
        return cause.errno != errno.EINVAL  # s3fs's for InvalidBucketName and the like
    return type(cause).__name__ not in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
