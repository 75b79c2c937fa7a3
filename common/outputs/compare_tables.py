"""Runs side by side as recipes: those that differ in their seed alone are one, its scores a mean with its spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

SEED = "seed"
OFF = (None, False, 0, "none", "softmax", [])
SWITCHES = {"smote": ("smote_k", "smote_mode"), "oversample_target": ("oversample_class",), "head": ("ordinal_weight",)}
FEW = 2  # settings that may differ between two recipes whose difference is laid to them


@dataclass(frozen=True)
class Recipe:
    """Runs of the same settings but for the seed: the name that they share, their names by seed, the settings."""

    name: str
    runs: dict[int, str]
    settings: dict


def shared_name(runs: Mapping[int, str]) -> str:
    """The name of runs without their seed (`v2-s42` is v2), or that of the first."""
    cut = {name.removesuffix(f"-s{seed}") for seed, name in runs.items()}
    return cut.pop() if len(cut) == 1 else next(iter(runs.values()))


def recipes_of(settings: Mapping[str, Mapping], free: set[str]) -> list[Recipe]:
    """Recipes in the order of their first runs. settings: {run: its settings}; free: names that decide nothing.

    Two runs of one seed are two recipes, since nothing tells which of them is meant.
    """
    found: list[Recipe] = []
    for run, values in settings.items():
        kept = {key: value for key, value in values.items() if key not in free | {SEED}}
        seed = values.get(SEED, 0)
        one = Recipe(run, {seed: run}, kept)
        alike = [recipe for recipe in found if not differing([recipe, one]) and seed not in recipe.runs]
        if alike:
            alike[0].runs[seed] = run
        else:
            found.append(one)
    named = [Recipe(shared_name(recipe.runs), recipe.runs, recipe.settings) for recipe in found]
    once = len({recipe.name for recipe in named}) == len(named)
    return named if once else found


def mean_name(recipe: Recipe) -> str:
    return f"{recipe.name}, mean of {len(recipe.runs)} seeds"


def variants_of(table: pd.DataFrame, runs: Sequence[str]) -> list[str]:
    """What stands behind the names of runs in the first column: "" and, say, " + CRF"."""
    names = table.iloc[:, 0].astype(str)
    return list(dict.fromkeys(name[len(run) :] for run in runs for name in names
                              if name == run or name.startswith(f"{run} + ")))  # fmt: skip


def scores_of(table: pd.DataFrame, recipe: Recipe, variant: str, metrics: Sequence[str]) -> pd.DataFrame:
    """A line per seed of a recipe, indexed by it; of seeds that the table has."""
    by_name = table.set_index(table.columns[0])
    there = {seed: f"{run}{variant}" for seed, run in recipe.runs.items() if f"{run}{variant}" in by_name.index}
    frame = by_name.loc[list(there.values()), list(metrics)].astype(float)
    frame.index = list(there)
    return frame


def spread(values: pd.DataFrame) -> pd.Series:
    """Standard deviation over seeds; nan of one."""
    return values.std(ddof=1) if len(values) > 1 else pd.Series(np.nan, values.columns)


def recipe_table(table: pd.DataFrame, recipes: Sequence[Recipe], metrics: Sequence[str]) -> pd.DataFrame:
    """A line per recipe and variant: recipe, seeds, <metric> (mean) and <metric> spread (over seeds); the mean of the
    seeds' predictions, where the table has it, is a line of its own with its own scores."""
    lines, by_name = [], table.set_index(table.columns[0])
    for recipe in recipes:
        for variant in variants_of(table, list(recipe.runs.values())):
            found = scores_of(table, recipe, variant, metrics)
            mean, wide = found.mean(), spread(found)
            line = {"recipe": f"{recipe.name}{variant}", "seeds": len(found)} | mean.to_dict()
            lines.append(line | {f"{name} spread": wide[name] for name in metrics})
            together = f"{mean_name(recipe)}{variant}"
            if together in by_name.index:
                line = {"recipe": together, "seeds": len(recipe.runs)}
                lines.append(line | by_name.loc[together, list(metrics)].astype(float).to_dict())
    return pd.DataFrame(lines)


def matters(key: str, settings: Mapping) -> bool:
    """Whether a setting does anything: what its switch turns off does not."""
    return not any(settings.get(switch, True) in OFF for switch, names in SWITCHES.items() if key in names)


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """Settings that are not the same in all recipes in which they matter."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe.settings)
    used = {key: [recipe.settings.get(key) for recipe in recipes if matters(key, recipe.settings)] for key in keys}
    return [key for key, values in used.items() if any(value != values[0] for value in values)]


def said(value) -> str:
    words = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return {"None": "default", "True": "on", "False": "off", "": "none"}.get(words, words)


def change_of(first: Recipe, other: Recipe) -> dict[str, str]:
    """{setting: what it is -> what it becomes, in words} of what differs."""
    return {key: f"{said(first.settings.get(key))} \N{RIGHTWARDS ARROW} {said(other.settings.get(key))}"
            for key in differing([first, other])}  # fmt: skip


def without_first(one: Recipe, other: Recipe, recipes: Sequence[Recipe]) -> tuple[Recipe, Recipe]:
    """The two in the order in which an ingredient is added: what is off comes before what is on, else the value that
    an earlier recipe has (by the first setting in which they differ)."""
    key = differing([one, other])[0]
    values = [recipe.settings.get(key) for recipe in recipes]
    place = {id(recipe): (recipe.settings.get(key) not in OFF, values.index(recipe.settings.get(key)))
             for recipe in (one, other)}  # fmt: skip
    return (one, other) if place[id(one)] < place[id(other)] else (other, one)


def alone(one: Recipe, other: Recipe, recipes: Sequence[Recipe]) -> bool:
    """Whether the two differ in at most FEW settings and no third recipe, by a part of these, tells them apart."""
    change = set(differing([one, other]))
    between = (set(differing([third, end])) for third in recipes for end in (one, other) if third is not end)
    return 0 < len(change) <= FEW and not any(part < change for part in between if part)


def ingredient_table(table: pd.DataFrame, recipes: Sequence[Recipe], metrics: Sequence[str]) -> pd.DataFrame:
    """What one ingredient gave: a line per pair of recipes that are `alone`, and per variant of one recipe against
    itself without: from, to, change, seeds, <metric> (mean difference of the seeds that both have) and <metric> spread
    of these differences. Seeds are 0 where the two have none in common: then the means are compared."""
    pairs = []
    for at, first in enumerate(recipes):
        for second in (other for other in recipes[at + 1 :] if alone(first, other, recipes)):
            one, other = without_first(first, second, recipes)
            change = change_of(one, other)
            pairs.append((one, other, "", "; ".join(f"{key} {how}" for key, how in change.items())))
    for recipe in recipes:
        variants = variants_of(table, list(recipe.runs.values()))
        pairs += [(recipe, recipe, variant, variant.removeprefix(" + ")) for variant in variants if variant]
    lines = []
    for one, other, variant, change in pairs:
        before, after = scores_of(table, one, "", metrics), scores_of(table, other, variant, metrics)
        both = [seed for seed in before.index if seed in after.index]
        gain = after.loc[both] - before.loc[both] if both else (after.mean() - before.mean()).to_frame().T
        line = {"from": one.name, "to": f"{other.name}{variant}", "change": change, "seeds": len(both)}
        mean, wide = gain.mean(), spread(gain)
        lines.append(line | mean.to_dict() | {f"{name} spread": wide[name] for name in metrics})
    return pd.DataFrame(lines)
