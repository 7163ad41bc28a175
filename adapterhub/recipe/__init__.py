"""Recipes: the YAML file that says how a task's adapter is made, as a schema that refuses what it does not know."""

from __future__ import annotations

from .plain_yaml import parse_yaml
from .reading import load_recipe, recipe_from
from .schema import Recipe, Training, check_class_weights
from .values import LABELLED, TEMPLATE_PART, Kind, check_template

__all__ = [
    "LABELLED",
    "TEMPLATE_PART",
    "Kind",
    "Recipe",
    "Training",
    "check_class_weights",
    "check_template",
    "load_recipe",
    "parse_yaml",
    "recipe_from",
]
