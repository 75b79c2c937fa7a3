"""Runs side by side: what counts as one recipe, means and spreads, what an ingredient gave, and the page."""

import re

import numpy as np
import pandas as pd
import pytest

from common.engine.runs import FREE
from common.outputs.compare_report import metrics_of, write_compare_report
from common.outputs.compare_tables import (
    change_of,
    differing,
    ingredient_table,
    mean_name,
    recipe_table,
    recipes_of,
    scores_of,
    variants_of,
)
from common.outputs.shared_sections import interval_text

BASE = {"encoder": "resnet50", "attention": "none", "smote": False, "loss": ["focal=.7"], "data": "here", "run": ""}
FULL = BASE | {"encoder": "efficientnet-b4", "attention": "head", "smote": True}
SEEDS = (42, 123, 456)
METRICS = ["kappa", "rho"]
PUBLISHED = {"V1 (published)": {"kappa": 0.31, "rho": 0.43}, "V2 (published)": {"kappa": 0.45, "rho": 0.56}}
TITLES = ("Recipes", "Against the first", "What each ingredient gave", "Settings that differ", "Every run")


def settings_of(**recipes) -> dict:
    """{run: settings} of {recipe: (settings, seeds)}."""
    return {f"{name}-s{seed}": values | {"seed": seed, "run": f"{name}-s{seed}"}
            for name, (values, seeds) in recipes.items() for seed in seeds}  # fmt: skip


THREE = settings_of(v1=(BASE, SEEDS), v2=(FULL, SEEDS), plain=(FULL | {"smote": False}, SEEDS[:2]))


def scores(names, *, variants=("", " + CRF"), column="run", seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    lines = [{column: f"{name}{variant}", "kappa": rng.random(), "rho": rng.random(), "against first": rng.random(),
              "low95": 0.0, "high95": 1.0} for name in names for variant in variants]  # fmt: skip
    return pd.DataFrame(lines)


@pytest.fixture
def compared():
    recipes = recipes_of(THREE, FREE)
    means = [mean_name(recipe) for recipe in recipes]
    return recipes, scores([*THREE, *means])


def page_of(tmp_path, table, recipes, published=PUBLISHED) -> str:
    path = write_compare_report(tmp_path / "compare.html", title="a <b>", scores=table, recipes=recipes,
                                published=published)  # fmt: skip
    return path.read_text()


def text_of(html: str, title: str) -> str:
    """The words of a section, tags left out."""
    part = html.split(f">{title}</a></h2>")[1].split("</section>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", part.replace("<wbr>", "")))


# recipes


def test_runs_that_differ_in_their_seed_alone_are_one_recipe():
    found = recipes_of(THREE, FREE)
    assert [recipe.name for recipe in found] == ["v1", "v2", "plain"]
    assert found[0].runs == {42: "v1-s42", 123: "v1-s123", 456: "v1-s456"}
    assert not {"seed", "run", "data"} & found[0].settings.keys()
    elsewhere = {name: values | {"data": name} for name, values in THREE.items()}
    assert [r.runs for r in recipes_of(elsewhere, FREE)] == [r.runs for r in found]


def test_two_runs_of_one_seed_are_two_recipes_with_the_names_of_runs():
    twice = {"one": BASE | {"seed": 1}, "again": BASE | {"seed": 1}, "other": BASE | {"seed": 2}}
    found = recipes_of(twice, FREE)
    assert [recipe.runs for recipe in found] == [{1: "one", 2: "other"}, {1: "again"}]
    assert [recipe.name for recipe in found] == ["one", "again"]
    alike = recipes_of({"v-s1": BASE | {"seed": 1}, "v-s2": BASE | {"seed": 2, "smote": True}}, FREE)
    assert [recipe.name for recipe in alike] == ["v-s1", "v-s2"], "one name for two recipes would tell nothing"


def test_a_seed_is_cut_from_a_name_only_where_it_is_the_run_s():
    found = recipes_of({"net-s1": BASE | {"seed": 7}, "net-s2": BASE | {"seed": 8}}, FREE)
    assert found[0].name == "net-s1" and len(found) == 1


def test_variants_are_those_of_the_runs_and_of_nothing_that_begins_alike():
    table = scores(["a", "a-longer"])
    table.loc[len(table), "run"] = "a-longer + other"
    assert variants_of(table, ["a"]) == ["", " + CRF"]
    assert variants_of(table, ["a-longer"]) == ["", " + CRF", " + other"]


# means, spreads and ingredients


@pytest.mark.parametrize("column", ["run", "set"])
def test_means_and_spreads_are_numpy_s(compared, column):
    recipes, table = compared
    table = table.rename(columns={"run": column})
    summary = recipe_table(table, recipes, METRICS).set_index("recipe")
    by_name = table.set_index(column)
    for variant in ("", " + CRF"):
        values = by_name.loc[[f"v1-s{seed}{variant}" for seed in SEEDS], "rho"].to_numpy()
        line = summary.loc[f"v1{variant}"]
        assert line["rho"] == pytest.approx(np.mean(values)) and line["seeds"] == 3
        assert line["rho spread"] == pytest.approx(np.std(values, ddof=1))
        together = summary.loc[f"v1, mean of 3 seeds{variant}"]
        assert together["kappa"] == by_name.loc[f"v1, mean of 3 seeds{variant}", "kappa"]
        assert np.isnan(together["kappa spread"])
    assert list(summary.index)[:4] == ["v1", "v1, mean of 3 seeds", "v1 + CRF", "v1, mean of 3 seeds + CRF"]


def test_one_seed_has_no_spread():
    recipes = recipes_of(settings_of(v1=(BASE, (1,))), FREE)
    summary = recipe_table(scores(["v1-s1"]), recipes, METRICS)
    assert summary["kappa spread"].isna().all() and summary["kappa"].notna().all()


def test_an_ingredient_is_the_mean_difference_over_common_seeds(compared):
    recipes, table = compared
    gains = ingredient_table(table, recipes, METRICS)
    (line,) = gains[gains["change"] == "smote off → on"].to_dict("records")
    by_name = table.set_index("run")["kappa"]
    each = [by_name[f"v2-s{seed}"] - by_name[f"plain-s{seed}"] for seed in SEEDS[:2]]
    assert (line["from"], line["to"], line["seeds"]) == ("plain", "v2", 2), "what is off comes first"
    assert line["kappa"] == pytest.approx(np.mean(each)) and line["kappa spread"] == pytest.approx(np.std(each, ddof=1))
    crf = gains[gains["change"] == "CRF"].set_index("from")
    each = [by_name[f"v1-s{seed} + CRF"] - by_name[f"v1-s{seed}"] for seed in SEEDS]
    assert list(crf.index) == ["v1", "v2", "plain"] and crf["to"]["v1"] == "v1 + CRF"
    assert crf["kappa"]["v1"] == pytest.approx(np.mean(each))


def test_recipes_that_a_third_stands_between_are_no_pair():
    """Two that leave out one ingredient each differ in two settings, which says nothing of either."""
    ways = {"full": FULL, "small": FULL | {"encoder": "resnet50"}, "bare": FULL | {"attention": "none"}}
    recipes = recipes_of(settings_of(v1=(BASE, (1,)), **{name: (one, (1,)) for name, one in ways.items()}), FREE)
    gains = ingredient_table(scores([f"{name}-s1" for name in ("v1", *ways)], variants=("",)), recipes, METRICS)
    pairs = set(zip(gains["from"], gains["to"], strict=True))
    assert {("small", "full"), ("bare", "full")} <= pairs and ("small", "bare") not in pairs
    assert set(gains["change"]) >= {"encoder resnet50 → efficientnet-b4", "attention none → head"}
    far = recipes_of(settings_of(v1=(BASE, (1,)), v2=(FULL, (1,))), FREE)
    assert ingredient_table(scores(["v1-s1", "v2-s1"], variants=("",)), far, METRICS).empty, "three settings"


def test_what_is_off_comes_before_what_is_on_whichever_was_named_first():
    recipes = recipes_of(settings_of(full=(FULL, (1,)), bare=(FULL | {"smote": False}, (1,))), FREE)
    (line,) = ingredient_table(scores(["full-s1", "bare-s1"], variants=("",)), recipes, METRICS).to_dict("records")
    assert (line["from"], line["to"], line["change"]) == ("bare", "full", "smote off → on")


def test_seeds_that_are_not_common_compare_means():
    recipes = recipes_of(settings_of(a=(BASE, (1, 2)), b=(BASE | {"smote": True}, (3,))), FREE)
    table = scores(["a-s1", "a-s2", "b-s3"], variants=("",)).set_index("run")
    (line,) = ingredient_table(table.reset_index(), recipes, METRICS).to_dict("records")
    assert line["seeds"] == 0 and np.isnan(line["kappa spread"])
    assert line["kappa"] == pytest.approx(table["kappa"]["b-s3"] - table["kappa"][["a-s1", "a-s2"]].mean())


def test_what_differs_is_told_in_words():
    one, other = recipes_of(settings_of(a=(BASE, (1,)), b=(BASE | {"smote": True, "loss": ["a=1", "b=2"]}, (1,))), FREE)
    assert differing([one, other]) == ["smote", "loss"]
    assert change_of(one, other) == {"smote": "off → on", "loss": "focal=.7 → a=1 b=2"}
    older = recipes_of({"a": {"seed": 1}, "b": {"seed": 1, "smote": True}}, FREE)
    assert change_of(*older) == {"smote": "default → on"}, "a run of before there was the setting"


def test_scores_follow_their_seeds(compared):
    recipes, table = compared
    found = scores_of(table.sample(frac=1, random_state=1), recipes[0], " + CRF", METRICS)
    assert list(found.index) == list(SEEDS)
    assert found.loc[123, "kappa"] == table.set_index("run")["kappa"]["v1-s123 + CRF"]


def test_what_a_switch_turns_off_is_no_difference():
    off = BASE | {"smote_k": 5, "head": "softmax", "ordinal_weight": 0.3}
    runs = settings_of(a=(off, (1,)), b=(off | {"smote_k": 7, "ordinal_weight": 0.1}, (2,)),
                       c=(off | {"smote_k": 9, "smote": True}, (1,)), d=(off | {"smote": True}, (1,)))  # fmt: skip
    one, on, other = recipes_of(runs, FREE)
    assert one.runs == {1: "a-s1", 2: "b-s2"}, "one recipe of two seeds"
    assert change_of(one, on) == {"smote": "off → on"} and change_of(on, other) == {"smote_k": "9 → 5"}
    coral = recipes_of(settings_of(a=(off, (1,)), e=(off | {"head": "coral", "ordinal_weight": 0.5}, (1,))), FREE)
    assert change_of(*coral) == {"head": "softmax → coral"}


# the page


def test_columns_that_are_no_scores_are_no_metrics(compared):
    assert metrics_of(compared[1]) == METRICS
    wide = pd.DataFrame({"set": ["a"], **{f"m{k}": [0.5] for k in range(20)}, "note": ["x"]})
    assert metrics_of(wide) == [f"m{k}" for k in range(12)]


def test_the_page_has_every_section_and_the_published_rows_first(tmp_path, compared):
    recipes, table = compared
    html = page_of(tmp_path, table, recipes)
    assert re.findall(r"<h2><a [^>]*>([^<]*)</a>", html) == list(TITLES)
    first, summary = text_of(html, "Recipes"), recipe_table(table, recipes, METRICS).set_index("recipe")
    names = ["V1 (published)", "V2 (published)", "v1 ", "v1, mean of 3 seeds"]
    assert sorted(names, key=first.index) == names and "Published rows are of other data" in first
    line = summary.loc["v1"]
    space = "\N{NO-BREAK SPACE}"
    assert f">{line['kappa']:.4f}{space}±{space}{line['kappa spread']:.4f}<" in html
    change = text_of(html, "Against the first")
    gain = f"{summary['kappa']['v2'] - line['kappa']:+.4f}".replace("-", "\N{MINUS SIGN}")
    assert "minus those of v1" in change and gain in change
    assert "V2 (published) against V1 (published) +0.1400 +0.1300" in change
    assert "smote off → on" in text_of(html, "What each ingredient gave")
    assert "efficientnet-b4" in text_of(html, "Settings that differ")
    assert "14 lines" not in html and f"{len(table)} lines" in text_of(html, "Every run")
    assert html.count("<figure") == html.count("<svg viewBox") == len(METRICS)
    assert f"{summary['kappa'].max():.4f}" in html.split("<nav")[0] and "of 3 recipes (8 runs)" in html


def test_the_page_says_what_a_gain_is_of_and_on_how_few_groups_intervals_stand(tmp_path, compared):
    recipes, table = compared
    assert "at most two settings" in text_of(page_of(tmp_path, table, recipes), "What each ingredient gave")
    for groups, few in ((2, True), (5, False)):
        html = page_of(tmp_path, table.assign(groups=[np.nan] + [groups] * (len(table) - 1)), recipes)
        assert (f"bootstrap over {groups} groups of tiles: too few for 95 %" in text_of(html, "Every run")) == few
    assert "too few" not in page_of(tmp_path, table, recipes)
    interval = {"difference": 0.1, "low95": 0.05, "high95": 0.2, "against": "one"}
    for groups, few in ((2, True), (5, False)):
        text = interval_text({"interval": interval | {"groups": groups}})
        assert (f"over {groups} groups, too few for 95 %)" in text) == few


def test_the_page_escapes_names_once(tmp_path):
    names = settings_of(**{"a<b": (BASE, (1,)), "c&d": (FULL, (1,))})
    html = page_of(tmp_path, scores(names, variants=("",)), recipes_of(names, FREE), {})
    assert "a<b" not in html and "&amp;lt;" not in html and "&amp;amp;" not in html
    assert "a&lt;b" in html and "c&amp;d" in html and "Published" not in html and "<title>a &lt;b&gt;" in html


def test_one_recipe_alone_says_what_to_do(tmp_path):
    names = settings_of(v1=(BASE, (1,)))
    html = page_of(tmp_path, scores(names, variants=("",)), recipes_of(names, FREE))
    assert "There is one recipe" in text_of(html, "Against the first")
    assert "No two recipes" in text_of(html, "What each ingredient gave")
    assert "the same settings" in text_of(html, "Settings that differ") and "of 1 recipe (1 run)" in html


def test_a_metric_that_no_run_has_is_a_dash_and_no_figure(tmp_path, compared):
    recipes, table = compared
    html = page_of(tmp_path, table.assign(rho=np.nan), recipes)
    assert html.count("<figure") == 1 and "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.S)
    html = page_of(tmp_path, table.assign(rho=np.nan, kappa=np.nan), recipes)
    assert "<figure" not in html and "No recipe has a kappa" in html
    partly = table.assign(kappa=table["kappa"].where(table["run"] != "v1-s42"))
    assert page_of(tmp_path, partly, recipes).count("<figure") == 2


def test_names_of_runs_are_no_formulas(tmp_path):
    names = settings_of(**{"cost$x^2$": (BASE, (1,))})
    assert "cost$x^2$" in page_of(tmp_path, scores(names, variants=("",)), recipes_of(names, FREE), {}).split("<svg")[1]
