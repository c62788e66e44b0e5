"""All code that each step reaches, as it was at the step's version.

    python tests/support/step_versions.py                             records versions that were raised, and new steps
    python tests/support/step_versions.py --no-result-changed WHY     records changes after which every artifact in a
                                                                      store still means what it would mean if made now

A step reaches what its module imports, at the top or inside functions, and what that imports. Comments, docstrings,
formatting and what is imported for type checkers alone do not count.
"""

import argparse
import ast
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "step_versions.json"
PACKAGE = "retort"


class Silent(NamedTuple):
    """A step whose code changed while its version did not."""

    step: str
    changed: tuple[str, ...]
    """Modules that it reaches."""


def versions() -> dict[str, tuple[str, int]]:
    """(module, version) of every step, by its class."""
    import retort.recipes  # every step that a recipe has
    import retort.recipes.sharding
    import retort.serving.shards  # noqa: F401 - and those that split rows
    from retort.steps.base import step_classes

    ours = [cls for cls in step_classes() if cls.__module__.startswith(f"{PACKAGE}.")]
    return {cls.__name__: (cls.__module__, cls.version) for cls in ours if not inspect.isabstract(cls)}


def digests(modules: Mapping[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(_meaning(path).encode()).hexdigest()[:16] for name, path in sorted(modules.items())}


@cache  # most files are reached by most steps
def _meaning(path: Path) -> str:
    if path.suffix != ".py":
        return path.read_text(encoding="utf-8")
    return ast.dump(_WithoutTexts().visit(ast.parse(path.read_text(encoding="utf-8"))))


class _WithoutTexts(ast.NodeTransformer):
    """Docstrings, of fields too."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def reached(module: str, root: Path = ROOT) -> dict[str, Path]:
    """Files of the package that a module reaches, itself included, by name: modules, and the templates beside them."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name, root)
        if path is None or name in found:
            continue
        found[name] = path
        if "PackageLoader(" in path.read_text(encoding="utf-8"):
            found |= {f"{name}:{one.name}": one for one in sorted((path.parent / "templates").glob("*.j2"))}
        waiting += _imports(path)
        waiting += _programs(path, name)
        waiting += name.rpartition(".")[:1]
    return found


@cache
def _file(name: str, root: Path) -> Path | None:
    if name.partition(".")[0] != PACKAGE:
        return None
    path = root.joinpath(*name.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


@cache
def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(_WithoutTypeChecking().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return names


def _programs(path: Path, name: str) -> Iterator[str]:
    """Modules of a folder beside it that it names, to run them in a process of their own: vLLM's engine."""
    text = path.read_text(encoding="utf-8")
    for main in path.parent.glob("*/__main__.py"):
        if f'"{main.parent.name}"' in text:
            for module in main.parent.glob("*.py"):
                yield f"{name.rpartition('.')[0]}.{main.parent.name}.{module.stem}"


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        is_for_checkers = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return node.orelse if is_for_checkers else self.generic_visit(node)


def silent(recorded: Mapping[str, Any], root: Path = ROOT) -> list[Silent]:
    """Steps that changed and do not say so."""
    found = []
    for step, (module, version) in versions().items():
        now = digests(reached(module, root))
        before = recorded["steps"].get(step)
        changed = tuple(name for name, digest in now.items() if recorded["files"].get(name) != digest)
        if before == version and changed:
            found.append(Silent(step, changed))
    return found


def current(root: Path = ROOT) -> dict[str, Any]:
    steps = versions()
    files: dict[str, str] = {}
    for module, _ in steps.values():
        files |= digests(reached(module, root))
    return {"steps": {step: version for step, (_, version) in steps.items()}, "files": dict(sorted(files.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-result-changed", metavar="WHY", help="a sentence for the record")
    why = parser.parse_args().no_result_changed
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"steps": {}, "files": {}, "unchanged": []}
    changes = silent(recorded)
    if changes and not why:
        for one in changes:
            print(f"{one.step}: {', '.join(one.changed)}")
        raise SystemExit(
            "Raise `version` of the steps whose artifacts mean something else now, or give --no-result-changed WHY."
        )
    entry = {
        "on": date.today().isoformat(),
        "steps": [one.step for one in changes],
        "files": sorted({name for one in changes for name in one.changed}),
        "why": why,
    }
    kept = [*recorded["unchanged"], *([entry] if changes else [])]
    RECORD.write_text(json.dumps({**current(), "unchanged": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
