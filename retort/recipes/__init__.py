"""All recipes by `kind`. This is the only place that lists them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retort.config import RecipeConfig
from retort.config.loading import load, parse
from retort.recipes.base import Recipe
from retort.recipes.mckd.recipe import MckdRecipe
from retort.recipes.soft_label.recipe import SoftLabelRecipe

RECIPES: dict[str, Recipe[Any, Any]] = {recipe.kind: recipe for recipe in (MckdRecipe(), SoftLabelRecipe())}


def recipe_of(config: RecipeConfig) -> Recipe[Any, Any]:
    """The recipe that a config belongs to."""
    return next(recipe for recipe in RECIPES.values() if recipe.config is type(config))


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RecipeConfig:
    """Read, override and validate the YAML file of any recipe. `overrides` are `dotted.field=value`, in YAML syntax.

    `path` may be an s3:// address; the server is then AWS, or AWS_ENDPOINT_URL if set. Raises ConfigError with one line
    per error, and StoreUnavailable for a bucket that does not respond.
    """
    return load(path, overrides, config_models())


def parse_config(values: dict[str, Any], origin: str) -> RecipeConfig:
    """Validate `values`. Errors give `origin` as their location."""
    return parse(values, origin, config_models())


def config_models() -> dict[str, type[RecipeConfig]]:
    """Config types by `kind`, the default first."""
    models: dict[str, type[RecipeConfig]] = {}
    for recipe in RECIPES.values():
        models |= dict.fromkeys((recipe.kind, *recipe.former_kinds), recipe.config)
    return models
