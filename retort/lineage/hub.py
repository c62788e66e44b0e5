"""Pushes an exported folder to a model hub, by the hub's own client."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retort.errors import ConfigError, StoreUnavailable, first_line

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def make_repository(name: str) -> None:
    """Make the model repository ORGANIZATION/NAME, which only its owners see, unless there is one.

    Raises ConfigError for a name that is none and for a login that may not write it, StoreUnavailable.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"--push {name}: no name of a repository; give ORGANIZATION/NAME, of letters, digits, . _ -")
    from huggingface_hub import HfApi

    with _told(name):
        HfApi().create_repo(name, private=True, exist_ok=True)


def push(folder: Path, name: str) -> str:
    """Commit the folder's files to the repository, which exists. Returns the commit's address.

    Files of an earlier push that this one lacks stay there. Raises as `make_repository`.
    """
    from huggingface_hub import HfApi

    with _told(name):
        commit = HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="A student distilled by Retort")
    return str(commit.commit_url)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns the client's errors into sentences."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(
                f"--push {name}: the hub refuses this login (HTTP status {status}); HF_TOKEN must hold a token that "
                "may write there"
            ) from error
        raise StoreUnavailable(f"--push {name}: the hub refuses ({first_line(error)})") from error
    except HFValidationError as error:
        raise ConfigError(f"--push {name}: {first_line(error)}") from error
    except Exception as error:  # which HTTP client the hub's library uses, and so what it raises, varies by version
        raise StoreUnavailable(f"--push {name}: the hub cannot be reached ({type(error).__name__})") from error
