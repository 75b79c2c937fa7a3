"""The balance search beside scikit-learn's StratifiedGroupKFold: imbalance of 5 folds and seconds, in one run.

`python benchmarks/balance.py --labels train.csv` reads the long table of the biomass competition; without it, a made-up
table is used. Seconds depend on what else the machine does, so the CPU's are given too.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.side_by_side import Beside, print_table
from common.datasets.balance import balance_matrix, balanced_groups, fold_costs
from common.datasets.folds import quantile_bins

OUTPUTS = ["Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g"]
ZEROS = OUTPUTS[1:3]


def read_labels(path):
    """One row per photo of a long table (sample_id, Sampling_Date, State, target_name, target)."""
    long = pd.read_csv(path)
    long["id"] = long["sample_id"].str.split("__").str[0]
    rows = long.pivot(index="id", columns="target_name", values="target")
    first = long.drop_duplicates("id").set_index("id")
    return rows.assign(date=pd.to_datetime(first["Sampling_Date"]), state=first["State"]).reset_index()


def made_up(groups=30, seed=0):
    """A table of the same kind: 30 visits with levels of their own, 1 to 22 photos each, skewed outputs with zeros."""
    rng = np.random.default_rng(seed)
    visit = np.repeat(np.arange(groups), rng.integers(1, 23, groups))
    date = pd.Timestamp("2015-01-10") + pd.to_timedelta(rng.integers(0, 320, groups), unit="D")
    rows = pd.DataFrame({"id": np.arange(len(visit)).astype(str), "date": date[visit]})
    rows["state"] = np.array(["NSW", "Tas", "Vic", "WA"])[rng.choice(4, groups, p=[0.2, 0.4, 0.3, 0.1])][visit]
    for name, level, empty in zip(OUTPUTS[:3], (26, 12, 7), (0.0, 0.11, 0.38), strict=True):
        values = rng.gamma(2, level / 2, groups)[visit] * rng.gamma(2, 0.5, len(visit))
        rows[name] = values * (rng.random(groups)[visit] * rng.random(len(visit)) > empty / 2)
    rows["GDM_g"] = rows["Dry_Green_g"] + rows["Dry_Clover_g"]
    return rows.assign(Dry_Total_g=rows["GDM_g"] + rows["Dry_Dead_g"])


def best_of_seeds(matrix, label, group, folds, seeds):
    """Least imbalance over the seeds of StratifiedGroupKFold, and how many different ones they gave."""
    costs = []
    for seed in tqdm(range(seeds), desc="StratifiedGroupKFold", leave=False):
        fold = np.zeros(len(group), int)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for k, (_train, held) in enumerate(splitter.split(matrix, label, group)):
            fold[held] = k
        costs.append(fold_costs(matrix, fold, folds).sum())
    return min(costs), len(set(np.round(costs, 9)))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="long table of labels (default: a made-up table)")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=300, help="seeds of StratifiedGroupKFold")
    args = parser.parse_args(argv)
    rows = read_labels(args.labels) if args.labels else made_up()
    rows["month"] = rows["date"].dt.month
    group = (rows["date"].dt.strftime("%Y-%m-%d") + "_" + rows["state"]).to_numpy(str)
    matrix = balance_matrix(rows, shares=("state", "month"), targets=OUTPUTS, zeros=ZEROS)
    print(f"{args.labels or 'made-up table'}: {len(rows)} rows, {len(set(group))} groups, {args.folds} folds")
    ours = []
    for seed in range(5):
        start, cpu = time.perf_counter(), time.process_time()
        ours.append(fold_costs(matrix, balanced_groups(matrix, group, args.folds, seed=seed), args.folds).sum())
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        note = ", compilation included" if seed == 0 else ""
        print(f"ours, seed {seed}: imbalance {ours[-1]:.4f}, {seconds:.2f} s ({cpu:.2f} s of CPU{note})")
    labels = {f"{n} bins of total": quantile_bins(rows["Dry_Total_g"], n) for n in (2, 3, 4, 5, 10)}
    labels |= {"state": rows["state"], "month": rows["month"].astype(str)}
    warnings.filterwarnings("ignore", message="The least populated class")
    theirs = {}
    for name, label in labels.items():
        start = time.perf_counter()
        theirs[name], different = best_of_seeds(matrix, label, group, args.folds, args.seeds)
        told = f"imbalance {theirs[name]:.4f}, {time.perf_counter() - start:.2f} s, {different} different splits"
        print(f"best of {args.seeds} seeds stratified by {name}: {told}")
    name = min(theirs, key=theirs.get)
    print(f"ours (median of 5 seeds) / their best ({name}): {np.median(ours) / theirs[name]:.3f}")
    what, beside = f"imbalance of {args.folds} folds, median of 5 seeds", f"StratifiedGroupKFold, best of {args.seeds}"
    print_table([Beside(what, f"{beside}, by {name}", np.median(ours), cost, "") for name, cost in theirs.items()])


if __name__ == "__main__":
    main()
