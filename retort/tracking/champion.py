"""The champion in the form that a run needs."""

from retort.config import RecipeConfig
from retort.errors import ConfigError
from retort.records.result import Champion
from retort.store import Manifest, Store
from retort.store.ancestry import fine_tuned_from
from retort.tracking.registry import reigning_version

KIND = "students"


def reigning_student(config: RecipeConfig, store: Store) -> Champion | None:
    """The champion of the config's model; None if there is no tracking or no champion.

    Raises ConfigError if the champion's artifact is not in this store, TrackingUnavailable, StoreUnavailable.
    """
    if config.tracking is None:
        return None
    champion = reigning_version(config.tracking.uri, config.name)
    if champion is None:
        return None
    manifest = store.find(KIND, champion.key)
    if manifest is None:
        raise ConfigError(
            f"version {champion.version} of '{config.name}' reigns, but its artifact {KIND}/{champion.key} (registered "
            f"as {champion.artifact}) is not in store.root = '{config.store.address}': give the store that holds "
            f"it, copy it there, or let another reign (`retort rollback {config.name} --reason TEXT`)"
        )
    return Champion(
        model=config.name,
        version=champion.version,
        student=store.ref(manifest),
        fingerprint=manifest.fingerprint,
        trained=_trained(store, manifest).fingerprint,
    )


def _trained(store: Store, student: Manifest) -> Manifest:
    """The student before it was fine-tuned on gold labels, if it was and its artifact is still there."""
    before = fine_tuned_from(student)
    return (store.find(KIND, before) if before else None) or student
