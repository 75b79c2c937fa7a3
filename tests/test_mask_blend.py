import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.optimize import minimize
from sklearn.metrics import matthews_corrcoef

from common.errors import InputError
from common.metrics.segmentation import confusion, count_row
from common.outputs.masks import read_beside, read_probs, write_probs
from common.post.blend import load_blend, save_blend
from common.post.mask_blend import apply_blend, fit_blend, fit_greedy, fit_weights, sample_sets, sound_members
from common.post.mask_judge import bootstrap_difference, compare, fit_post, judge, parts_of
from common.post.morphology import finish_mask

OUTPUTS = ("background", "glacier", "lake")
MORPHOLOGY = {"min_area": [30, 8], "fill_holes": 10, "connectivity": 8}
SIZE = (36, 44)


def blobs(rng, classes, lift, sigma=3.0):
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=SIZE), sigma) for _ in range(classes)])
    return noise / noise.std() + np.array(lift)[:, None, None]


def softmax(logits):
    power = np.exp(logits - logits.max(0))
    return power / power.sum(0)


class World:
    """Eight tiles in four groups, and three members: two with noise of their own, one of another tile's truth."""

    def __init__(self, folder):
        rng = np.random.default_rng(11)
        self.folder = folder
        self.rows = pd.DataFrame({"id": [f"0{i}_0{i}" for i in range(8)], "group": list("aabbccdd"), "fold": 0})
        self.rows["fold"] = np.arange(8) // 4
        target = [blobs(rng, 3, (0.6, 0, -0.9)).argmax(0).astype(np.uint8) for _ in range(8)]
        valid = [blobs(rng, 1, (1.0,))[0] > 0 for _ in range(8)]
        self.target = {one: np.where(v, t, 0) for one, t, v in zip(self.rows["id"], target, valid, strict=True)}
        self.valid = dict(zip(self.rows["id"], valid, strict=True))
        self.sets = {}
        for name, noise, shift in (("good", 1.0, 0), ("fair", 1.4, 0), ("stranger", 1.0, 3)):
            self.add(name, rng, noise, shift)

    def add(self, name, rng, noise, shift, tilt=(0, 0, 1.2)):
        lines = []
        for index, (one, fold) in enumerate(zip(self.rows["id"], self.rows["fold"], strict=True)):
            truth = self.target[self.rows["id"][(index + shift) % 8]]
            prob = softmax(1.2 * (blobs(rng, 3, tilt, 1.0) * noise + 2 * np.eye(3)[truth].transpose(2, 0, 1)))
            path = write_probs(self.folder / name / f"{one}.npz", prob, valid=self.valid[one])
            counts = confusion(self.target[one], read_probs(path).argmax(0), self.valid[one], 3)
            nodata = (~self.valid[one]).sum()
            lines.append({"id": one, "fold": fold, **count_row(counts, nodata), "prob": str(path)})
        self.sets[name] = pd.DataFrame(lines)

    def read_target(self, row):
        return self.target[row["id"]], self.valid[row["id"]]

    def sample(self, names=("good", "fair", "stranger"), rows=None):
        rows = self.rows if rows is None else rows
        sets = {name: self.sets[name].set_index("id").loc[rows["id"]].reset_index() for name in names}
        part = np.unique(rows["group"], return_inverse=True)[1]
        return sample_sets(rows, sets, classes=3, read_target=self.read_target, part=part, seed=1)

    def known_score(self, name):
        """scikit-learn's MCC of a member's argmax over valid pixels."""
        pairs = []
        for one, path in self.sets[name][["id", "prob"]].itertuples(index=False):
            inside = self.valid[one]
            pairs.append((self.target[one][inside], read_probs(path).argmax(0)[inside]))
        return matthews_corrcoef(*map(np.concatenate, zip(*pairs, strict=True)))

    def judge(self, names=("good", "fair", "stranger"), **settings):
        settings = {"kind": "greedy", "seed": 1, "morphology": MORPHOLOGY, "outputs": OUTPUTS} | settings
        return judge(self.rows, {name: self.sets[name] for name in names}, read_target=self.read_target, **settings)

    def mask(self, one, weights, post):
        probs = [read_probs(frame.set_index("id").loc[one, "prob"]) for frame in self.sets.values()]
        return finish_mask(np.tensordot(np.array(weights), np.stack(probs), 1), self.valid[one], **post)

    def score(self, masks):
        """scikit-learn's MCC over all pixels of {id: mask}."""
        truth = np.concatenate([self.target[one].ravel() for one in masks])
        return matthews_corrcoef(truth, np.concatenate([mask.ravel() for mask in masks.values()]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def judgement(world):
    return world.judge()


def test_members_score_their_argmax_over_all_pixels(world, judgement):
    for name, frame in world.sets.items():
        argmax = {one: read_probs(path).argmax(0) for one, path in zip(frame["id"], frame["prob"], strict=True)}
        masks = {one: np.where(world.valid[one], mask, 0) for one, mask in argmax.items()}
        assert judgement["members"][name] == pytest.approx(world.score(masks), abs=1e-12)
    sample = world.sample()  # small tiles: every pixel is in it
    found = [sample.score(prob) for prob in sample.prob]
    np.testing.assert_allclose(found, list(judgement["members"].values()), atol=1e-9)


def test_fitted_score_is_that_of_the_masks_handed_in(world, judgement):
    blend = judgement["blend"]
    assert set(blend["post"]) == {"thresholds", *MORPHOLOGY}
    masks = {one: world.mask(one, blend["weights"], blend["post"]) for one in world.rows["id"]}
    assert judgement["scores"]["fitted"] == pytest.approx(world.score(masks), abs=1e-12) == blend["fitted"]


@pytest.mark.parametrize("kind", ["mean", "weights", "greedy"])
def test_honest_score_is_refitted_without_each_group(world, kind):
    answer = world.judge(kind=kind)
    masks = {}
    for group in "abcd":
        rest = world.rows[world.rows["group"] != group].reset_index(drop=True)
        blend = fit_blend(world.sample(rows=rest), kind, members=list(world.sets), seed=1)
        for one in world.rows["id"][world.rows["group"] == group]:
            masks[one] = world.mask(one, blend["weights"], blend["post"] | MORPHOLOGY)
    assert answer["scores"]["honest"] == pytest.approx(world.score(masks), abs=1e-12)
    for _, row in world.rows.iterrows():
        np.testing.assert_array_equal(answer["read_pred"](row), masks[row["id"]])
    assert answer["honest"].columns.tolist()[:4] == ["id", "fold", "nodata", "n_0_0"]


def test_broken_member_is_dropped_and_the_blend_beats_the_best(world, judgement):
    blend = judgement["blend"]
    assert list(blend["dropped"]) == ["stranger"] and blend["weights"][2] == 0 and min(blend["weights"][:2]) > 0
    assert blend["dropped"]["stranger"] == pytest.approx(world.known_score("stranger"), abs=1e-12)
    assert judgement["members"]["stranger"] > 0.05 > blend["dropped"]["stranger"]  # no data is right by itself
    assert judgement["best"] == "good"
    assert judgement["scores"]["honest"] > judgement["members"]["good"] + 0.05
    assert judgement["interval"]["against"] == "good" and judgement["interval"]["difference"] > 0


def test_a_member_that_is_good_in_one_group_only_is_dropped(world):
    sample = world.sample(("good", "stranger"))
    assert sound_members(sample).tolist() == [True, False]
    lucky = sample.prob[1].copy()
    lucky[sample.part == 0] = np.eye(3)[sample.target[sample.part == 0]]
    one = type(sample)(np.stack([sample.prob[0], lucky]), sample.target, sample.weight, sample.part, sample.background)
    assert one.score(lucky) > 0 and sound_members(one).tolist() == [True, False]


def test_gains_are_honest_and_add_up(world, judgement):
    gains = judgement["gains"].set_index("set")
    assert list(gains.index) == ["good", "fair", "stranger", "blend of all"]
    np.testing.assert_allclose(gains["none"].iloc[:3], list(judgement["members"].values()), atol=1e-12)
    both = gains.loc["blend of all", ["none", "both"]].sum()
    assert both == pytest.approx(judgement["scores"]["honest"], abs=1e-12)
    assert gains.loc["good", "thresholds"] > 0.01  # its lakes are over-rated
    alone = world.judge(["good"])
    assert list(alone["gains"]["set"]) == ["good"] and alone["interval"] is None
    assert alone["scores"]["honest"] == pytest.approx(gains.loc["good", ["none", "both"]].sum())
    plain = world.judge(["good"], thresholds=False, morphology={})
    assert plain["scores"] == pytest.approx(dict.fromkeys(("fitted", "honest"), plain["members"]["good"]))
    given = world.judge(["good"], thresholds=[0.3, 0.3, 0.6], morphology={})
    masks = {one: world.mask(one, (1, 0, 0), {"thresholds": [1, 1, 2]}) for one in world.rows["id"]}
    assert given["scores"] == pytest.approx(dict.fromkeys(("fitted", "honest"), world.score(masks)), abs=1e-12)


def test_tables(world, judgement):
    tables, honest = judgement["tables"], judgement["scores"]["honest"]
    pixels = tables["pixels"].set_index("pixels")
    assert pixels.loc["all", "mcc"] == honest and pixels.loc["all", "count"] == 8 * 36 * 44
    assert pixels.loc["valid", "count"] == sum(valid.sum() for valid in world.valid.values())
    assert pixels.loc["valid", "mcc"] != honest
    assert tables["class"]["class"].tolist() == list(OUTPUTS)
    assert tables["group"]["group"].tolist() == list("abcd") and tables["fold"]["tiles"].tolist() == [4, 4]
    masks = {row["id"]: judgement["read_pred"](row) for _, row in world.rows.iterrows()}
    tiles = judgement["tiles"].set_index("id")
    for one in masks:
        assert tiles.loc[one, "mcc"] == pytest.approx(world.score({one: masks[one]}), abs=1e-12)
    assert tiles["error_share"].sum() == pytest.approx(1)
    third = {one: masks[one] for one in ("04_04", "05_05")}
    assert tables["group"]["mcc"][2] == pytest.approx(world.score(third), abs=1e-12)


def test_weights_are_the_likeliest_mixture(world):
    sample = world.sample()
    right = sample.prob[:, np.arange(len(sample.target)), sample.target].astype(float)

    def loss(free):
        weights = np.exp(free) / np.exp(free).sum()
        return -np.log(weights @ np.maximum(right, 1e-4)).mean()

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    np.testing.assert_allclose(fit_weights(sample), np.exp(best) / np.exp(best).sum(), atol=2e-3)


def test_greedy_takes_the_best_member_at_every_step(world):
    sample = world.sample(("good", "fair"))
    background = np.zeros(int(sample.background.sum()), int)
    truth = np.concatenate([sample.target, background])

    def score(prob):
        return matthews_corrcoef(truth, np.concatenate([prob.argmax(1), background]))

    total, path = np.zeros_like(sample.prob[0]), []
    for _ in range(15):
        scores = [score(total + prob) for prob in sample.prob]
        total = total + sample.prob[int(np.argmax(scores))]
        path.append((max(scores), int(np.argmax(scores))))
    length = int(np.argmax([value for value, _ in path])) + 1
    picks = [pick for _, pick in path[:length]]
    np.testing.assert_allclose(fit_greedy(sample), [picks.count(0) / length, picks.count(1) / length])


def test_interval_equals_a_plain_bootstrap(world, judgement):
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 50, (2, 8, 3, 3))
    nodata, groups = rng.integers(0, 90, 8), world.rows["group"]
    answer = bootstrap_difference(*counts, nodata, groups, draws=50, seed=4)
    drawn = np.random.default_rng(4).multinomial(4, np.full(4, 0.25), 50)
    plain = []
    for times in drawn:
        repeat = np.repeat(np.arange(8), times[np.arange(8) // 2])
        pair = []
        for one in counts:
            total = one[repeat].sum(0)
            total[0, 0] += nodata[repeat].sum()
            pair.append(matthews_corrcoef(*np.indices((3, 3)).reshape(2, -1), sample_weight=total.ravel()))
        plain.append(pair[0] - pair[1])
    assert answer["low95"] == pytest.approx(np.percentile(plain, 2.5))
    assert answer["high90"] == pytest.approx(np.percentile(plain, 95))
    assert answer["share_positive"] == np.mean(np.array(plain) > 0)


def test_blend_is_saved_and_applied(world, judgement, tmp_path):
    blend = load_blend(save_blend(tmp_path / "blend.json", judgement["blend"]))
    test = {name: frame[["id", "nodata", "prob"]] for name, frame in world.sets.items()}
    test["fair"] = test["fair"].iloc[::-1]
    answer = apply_blend(blend, test, tmp_path / "prob")
    assert list(answer.columns) == ["id", "nodata", "prob"] and answer["id"].tolist() == world.rows["id"].tolist()
    for one, path in zip(answer["id"], answer["prob"], strict=True):
        mask = finish_mask(read_probs(path), world.valid[one], **blend["post"])
        assert (mask != world.mask(one, blend["weights"], blend["post"])).mean() < 0.005  # float16 on the way
        assert path == str(tmp_path / "prob" / f"{one}.npz")
        np.testing.assert_array_equal(read_beside(path, "valid"), world.valid[one])
    apply_blend(blend, {name: test[name] for name in ("good", "fair")}, tmp_path / "without")
    with pytest.raises(InputError, match="lacks members: good"):
        apply_blend(blend, {"fair": test["fair"]}, tmp_path)
    with pytest.raises(InputError, match="does not know: other"):
        apply_blend(blend, test | {"other": test["fair"]}, tmp_path)


def test_tiles_of_other_sizes_are_named(world, judgement, tmp_path):
    other = world.sets["fair"].copy()
    other.loc[2, "prob"] = str(write_probs(tmp_path / "x.npz", np.full((3, 10, 10), 1 / 3)))
    sets = {"good": world.sets["good"], "fair": other}
    with pytest.raises(InputError, match="tile 02_02 is predicted at different sizes"):
        apply_blend(judgement["blend"], sets, tmp_path / "prob")
    settings = {"kind": "mean", "seed": 1, "morphology": {}, "outputs": OUTPUTS, "read_target": world.read_target}
    with pytest.raises(InputError, match=r"fair: tile 02_02 is predicted at \(10, 10\)"):
        judge(world.rows, sets, **settings)


def test_post_of_a_run_is_what_a_blend_of_one_has(world):
    post = fit_post(
        world.rows, world.sets["good"], outputs=OUTPUTS, read_target=world.read_target, seed=1, morphology=MORPHOLOGY
    )
    assert post == world.judge(["good"])["blend"]["post"] == json.loads(json.dumps(post))


def test_compare(world, judgement):
    turned = {name: frame.iloc[::-1] for name, frame in world.sets.items()}
    table = compare(world.rows, {"good": world.sets["good"], "fair": turned["fair"]}, outputs=OUTPUTS)
    assert table["score"].tolist() == pytest.approx([judgement["members"]["good"], judgement["members"]["fair"]])
    assert table["against first"][1] == pytest.approx(table["score"][1] - table["score"][0])
    assert table["low95"][1] < table["against first"][1] < table["high95"][1]


def test_one_group_is_compared_without_an_interval(world):
    table, alone = (compare(rows, world.sets, outputs=OUTPUTS) for rows in (world.rows, world.rows.assign(group="a")))
    assert set(table) - set(alone) == {"low95", "high95"}
    assert alone["against first"][1] == pytest.approx(table["against first"][1], abs=1e-12) != 0


def test_groups_stay_whole_in_at_most_ten_parts():
    groups = [f"g{i:02d}" for i in np.random.default_rng(0).integers(0, 37, 400)]
    part = parts_of(groups)
    assert sorted(set(part.tolist())) == list(range(10))
    assert all(len(set(part[np.array(groups) == name])) == 1 for name in set(groups))
    assert parts_of(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_wrong_sets_are_named(world):
    settings = {"kind": "mean", "seed": 1, "morphology": {}, "outputs": OUTPUTS, "read_target": world.read_target}
    good = world.sets["good"]
    for sets, fault in (
        ({"good": good, "less": good.iloc[1:]}, "less: good and it do not both have: 00_00"),
        ({"bare": good.drop(columns="prob")}, "bare: has no probabilities"),
        ({"twice": pd.concat([good, good.iloc[:1]])}, "twice: ids occur more than once: 00_00"),
        ({"phase": good.drop(columns="n_2_2")}, "no column n_2_2"),
    ):
        with pytest.raises(InputError, match=fault):
            judge(world.rows, sets, **settings)
    with pytest.raises(InputError, match="rows lack ids of the predictions: 00_00"):
        judge(world.rows.iloc[1:], {"good": good}, **settings)
    with pytest.raises(InputError, match="at least 2 groups"):
        judge(world.rows.assign(group="a"), {"good": good}, **settings)
    with pytest.raises(InputError, match="--kind per-target"):
        judge(world.rows, {"good": good}, **settings | {"kind": "per-target"})
