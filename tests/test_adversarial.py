import cv2
import numpy as np
import pandas as pd
import pytest

from common.datasets.adversarial import CLASSIFIERS, adversarial_auc, adversarial_lines, fold_adversarial
from common.datasets.duplicates import distances, hash_photos, near_duplicates, photo_hash
from common.errors import InputError

NAMES = ["sky", "grass", "mud", "shade"]


def two_sides(shift, n=120, seed=0):
    """Statistics where column grass of the marked rows is moved by `shift` standard deviations."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3 == 0
    statistics = rng.normal(size=(n, 4))
    statistics[label, 1] += shift
    return statistics, label


@pytest.mark.parametrize("classifier", sorted(CLASSIFIERS))
def test_shifted_sides_are_told_apart_and_the_feature_is_named(classifier):
    answer = adversarial_auc(*two_sides(3.0), NAMES, classifier=classifier)
    expected = 0.983  # of the best possible rule: Phi(3 / sqrt 2)
    assert abs(answer["auc"] - expected) < 0.04 and answer["reason"] is None
    assert answer["features"][0][0] == "grass" and answer["features"][0][1] > 0.5
    shares = [share for _, share in answer["features"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("classifier", sorted(CLASSIFIERS))
def test_alike_sides_are_not_told_apart(classifier):
    aucs = [adversarial_auc(*two_sides(0.0, n=240, seed=s), NAMES, classifier=classifier)["auc"] for s in range(4)]
    assert abs(np.mean(aucs) - 0.5) < 0.06


def test_statistics_in_any_units_by_the_logistic_model():
    statistics, label = two_sides(2.0)
    plain = adversarial_auc(statistics, label, NAMES, classifier="logistic")
    scaled = adversarial_auc(statistics * [1e5, 1e-5, 1, 10] + 7, label, NAMES, classifier="logistic")
    assert scaled["auc"] == pytest.approx(plain["auc"], abs=1e-6)


def test_recognising_groups_does_not_count_when_groups_are_given():
    """Each group has its own look, and the sides are dealt by group: apart row by row, not for unseen groups."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(20), 10)
    statistics = rng.normal(size=(20, 4))[group] + rng.normal(0, 0.05, (200, 4))
    label = group % 2 == 0
    assert adversarial_auc(statistics, label, NAMES)["auc"] > 0.95
    assert adversarial_auc(statistics, label, NAMES, groups=group)["auc"] < 0.8


def test_the_same_for_the_same_seed():
    sides = two_sides(1.0)
    assert adversarial_auc(*sides, NAMES, seed=4) == adversarial_auc(*sides, NAMES, seed=4)


def test_a_single_test_image_is_said_not_measured():
    statistics, _ = two_sides(0.0)
    label = np.arange(len(statistics)) == 7
    answer = adversarial_auc(statistics, label, NAMES)
    assert answer["auc"] is None and answer["features"] == [] and "1 rows" in answer["reason"]
    assert "not measured" in adversarial_lines("train and test", answer)[0]
    assert adversarial_auc(statistics, label | ~label, NAMES)["auc"] is None
    one_group = np.where(label := np.arange(120) < 20, "a", np.arange(120).astype(str))
    assert "1 group" in adversarial_auc(statistics, label, NAMES, groups=one_group)["reason"]


def test_fold_against_fold_skips_test_rows_and_finds_the_odd_one():
    rng = np.random.default_rng(2)
    fold = np.arange(200) % 5 - 1
    statistics = rng.normal(size=(200, 4))
    statistics[fold == 2, 2] += 4
    statistics[fold == -1, 2] += 4  # were test rows to count, fold 2 would no longer be odd
    answers = fold_adversarial(statistics, fold, NAMES)
    assert [a["fold"] for a in answers] == [0, 1, 2, 3]
    assert answers[2]["auc"] > 0.95 and answers[2]["features"][0][0] == "mud"
    assert max(answers[k]["auc"] for k in (0, 1, 3)) < 0.85
    assert "AUC" in adversarial_lines("fold 2", answers[2])[0] and "mud" in adversarial_lines("fold 2", answers[2])[1]


def test_statistics_that_do_not_fit():
    statistics, label = two_sides(0.0)
    with pytest.raises(InputError, match="do not fit"):
        adversarial_auc(statistics, label[1:], NAMES)
    statistics[5, 2] = np.nan
    with pytest.raises(InputError, match="mud of row 5"):
        adversarial_auc(statistics, label, NAMES)


def photo(seed, height=200, width=400):
    """A smooth random scene with fine texture on it, uint8 RGB."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(40, 200, (6, 12, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def changed(image):
    """The photo after things that do not make it another photo."""
    for quality in (40, 90):
        coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        yield cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    yield cv2.convertScaleAbs(image, alpha=1.08, beta=6)
    yield cv2.convertScaleAbs(image, alpha=0.92, beta=-4)
    yield cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def test_hash_survives_small_changes_and_separates_photos():
    hashes = np.stack([photo_hash(photo(seed)) for seed in range(40)])
    assert hashes.shape == (40, 64) and hashes.dtype == bool
    for seed in range(8):
        for other in changed(photo(seed)):
            assert (photo_hash(other) != hashes[seed]).sum() <= 6
    apart = distances(hashes, hashes)[np.triu_indices(40, 1)]
    assert apart.min() > 8 and abs(apart.mean() - 32) < 3
    assert (photo_hash(photo(0)[:, ::-1]) != hashes[0]).sum() > 15


def test_distances_are_popcounts():
    rng = np.random.default_rng(3)
    a, b = rng.random((7, 64)) < 0.5, rng.random((5, 64)) < 0.5
    numbers = [[sum(1 << i for i in range(64) if bits[i]) for bits in table] for table in (a, b)]
    assert distances(a, b).tolist() == [[(x ^ y).bit_count() for y in numbers[1]] for x in numbers[0]]


@pytest.mark.parametrize("block", [1024, 3])
def test_near_duplicates_are_the_pairs_of_a_double_loop(block):
    rng = np.random.default_rng(4)
    hashes = np.repeat(rng.random((6, 64)) < 0.5, 4, axis=0)
    for row in hashes:
        row[rng.choice(64, rng.integers(0, 7), replace=False)] ^= True
    ids, sides = np.array([f"ID{i}" for i in range(24)]), rng.integers(0, 3, 24)
    expected = {
        (ids[i], ids[j], sides[i], sides[j], int((hashes[i] != hashes[j]).sum()))
        for i in range(24)
        for j in range(i + 1, 24)
        if sides[i] != sides[j] and (hashes[i] != hashes[j]).sum() <= 8
    }
    pairs = near_duplicates(hashes, ids, sides, max_distance=8, block=block)
    assert len(expected) > 5 and set(pairs.itertuples(index=False, name=None)) == expected
    assert len(pairs) == len(expected) and pairs["distance"].is_monotonic_increasing


def test_photos_are_hashed_in_the_order_of_their_paths():
    hashes = hash_photos(list(range(12)), photo)
    assert (hashes == np.stack([photo_hash(photo(seed)) for seed in range(12)])).all()
    assert hash_photos([], photo).shape == (0, 64)
    assert len(near_duplicates(hashes, np.arange(12), np.arange(12))) == 0

    def broken(path):
        raise InputError(f"photo {path} cannot be read")

    with pytest.raises(InputError, match="photo 0"):
        hash_photos(list(range(12)), broken)


@pytest.mark.data
def test_real_photos_have_no_near_duplicates_until_one_is_copied(biomass_data):
    paths = sorted((biomass_data / "train").glob("*.jpg"))[:24]
    hashes = hash_photos(paths, lambda path: cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_4)[..., ::-1])
    ids, sides = np.array([p.stem for p in paths]), np.arange(len(paths)) % 5
    assert near_duplicates(hashes, ids, sides).empty
    copy = photo_hash(cv2.convertScaleAbs(cv2.imread(str(paths[3]))[..., ::-1], alpha=1.05, beta=3))
    pairs = near_duplicates(np.vstack([hashes, copy]), np.append(ids, "copy"), np.append(sides, 9))
    assert pairs[["id_a", "id_b"]].values.tolist() == [[ids[3], "copy"]]
    assert isinstance(pairs, pd.DataFrame)
