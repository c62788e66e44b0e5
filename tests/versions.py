"""What the makers of each stage look like at their VERSION. `python tests/versions.py` records it anew."""

import hashlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType

RECORD = Path(__file__).with_name("versions.json")


def stage_modules() -> list[ModuleType]:
    """Those of `retort/stages` that make an artifact."""
    import retort.recipes.execute

    modules = sorted(
        {sys.modules[maker.__module__] for maker in retort.recipes.execute.MAKERS.values()}, key=lambda m: m.__name__
    )
    return [module for module in modules if makers(module)]


def makers(module: ModuleType) -> list[str]:
    """The source of each function `make_*` that is defined there."""
    functions = sorted(inspect.getmembers(module, inspect.isfunction))
    return [
        inspect.getsource(f) for name, f in functions if name.startswith("make_") and f.__module__ == module.__name__
    ]


def current() -> dict[str, dict[str, int | str]]:
    return {
        module.__name__: {
            "VERSION": module.VERSION,
            "sha256": hashlib.sha256("\n".join(makers(module)).encode()).hexdigest(),
        }
        for module in stage_modules()
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
