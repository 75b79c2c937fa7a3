"""Tables of rows for the tests of folds, and the imbalance written down once more, slowly, from the specification."""

import numpy as np
import pandas as pd

OUTPUTS = ("green", "dead", "clover", "gdm", "total")
ZEROS = ("dead", "clover")


def toy_rows(groups=24, seed=0):
    """Rows of `groups` visits of 1 to 15 photos: a date and a state each, skewed outputs with many zeros."""
    rng = np.random.default_rng(seed)
    lines = []
    for g in range(groups):
        date = pd.Timestamp("2021-01-03") + pd.Timedelta(days=13 * g)
        state = rng.choice(["NSW", "Tas", "Vic"])
        for _ in range(rng.integers(1, 16)):
            green, dead, clover = rng.gamma(2, 10 + g), rng.gamma(1, 9), rng.gamma(1, 5)
            dead, clover = dead * (rng.random() > 0.2), clover * (rng.random() > 0.4)
            name = f"ID{rng.integers(10**9)}"
            lines.append((name, f"{name}.jpg", date, date.month, state, green, dead, clover))
    rows = pd.DataFrame(lines, columns=["id", "path", "date", "month", "state", "green", "dead", "clover"])
    return rows.assign(gdm=rows.green + rows.clover, total=rows.green + rows.clover + rows.dead)


def real_rows(folder):
    """The 357 real rows, read from the long table without the project's reader; columns named as in toy_rows."""
    long = pd.read_csv(folder / "train_all_357_labels.csv")
    long["id"] = [name.split("__")[0] for name in long["sample_id"]]
    wide = long.pivot(index="id", columns="target_name", values="target")
    wide = wide[["Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g"]].set_axis(OUTPUTS, axis=1)
    first = long.drop_duplicates("id").set_index("id")
    rows = wide.assign(path=first["image_path"], state=first["State"], date=pd.to_datetime(first["Sampling_Date"]))
    return rows.assign(month=rows["date"].dt.month).reset_index()


def slow_imbalance(rows, fold, shares=("state", "month"), outputs=OUTPUTS, zeros=ZEROS):
    """The specification word by word: five sums of squared deviations, the size share times 25."""
    total = 0.0
    for k in sorted(set(fold)):
        part = rows[np.asarray(fold) == k]
        for column in shares:
            for value in set(rows[column]):
                total += (sum(part[column] == value) / len(part) - sum(rows[column] == value) / len(rows)) ** 2
        for name in outputs:
            total += ((part[name].mean() - rows[name].mean()) / np.std(rows[name].to_numpy())) ** 2
        for name in zeros:
            total += (sum(part[name] == 0) / len(part) - sum(rows[name] == 0) / len(rows)) ** 2
        total += 25 * (len(part) / len(rows) - 1 / len(set(fold))) ** 2
    return total
