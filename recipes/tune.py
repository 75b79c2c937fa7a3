"""Random search over the recipe's space; every trial is an ordinary run, so a stopped search goes on where it was.

python recipes/tune.py --trials 20 -- --data DIR --freeze-backbone --epochs 20     # after --: options of train.py
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from common.engine import runs
from common.errors import InputError, run_script
from common.files import atomic_write

SPACE = {
    "--grid": [["2", "2"], ["3", "3"], ["2", "3"], ["4", "4"]],
    "--head-lr-stage1": [["5e-4"], ["1e-3"], ["2e-3"]],
    "--dropout": [[".1"], [".2"], [".3"]],
    "--hidden-ratio": [[".25"], [".5"], ["1"]],
    "--aux-state-weight": [["1"], ["3"], ["5"]],
    "--aux-month-weight": [["1"], ["3"], ["5"]],
    "--aux-species-weight": [["1"], ["2"], ["3"]],
    "--target-weights": [["equal"], ["total-heavy"]],
    "--grad-clip": [[".5"], ["1"], ["2"]],
}


def draw_trial(seed: int, trial: int, fixed: list[str]) -> dict[str, list[str]]:
    """Options of a trial, a function of (seed, trial); what the caller fixed is left out."""
    draws = np.random.default_rng([seed, trial])
    drawn = {option: values[draws.integers(len(values))] for option, values in SPACE.items()}
    return {option: value for option, value in drawn.items() if option not in fixed}


def run_trial(name: str, options: dict[str, list[str]], further: list[str]) -> float:
    """Train the trial's folds (those that are finished are not trained again); mean of their scores."""
    words = [word for option, value in options.items() for word in (option, *value)]
    train.main([*further, "--use-aux-heads", *words, "--run", name, "--resume"] if is_begun(name) else
               [*further, "--use-aux-heads", *words, "--run", name])  # fmt: skip
    finished = (runs.RUNS / name).glob("fold*/finished.json")
    return float(np.mean([json.loads(path.read_text())["score"] for path in finished]))


def is_begun(name: str) -> bool:
    return any((runs.RUNS / name).glob("fold*/args.yaml"))


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    own, further = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="how many settings to try")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--name", default="tune", help="prefix of the runs and of the table")
    args = parser.parse_args(own)
    if "--run" in further:
        raise InputError("--run: the search names its runs; use --name")
    lines = []
    for trial in range(args.trials):
        options = draw_trial(args.seed, trial, further)
        score = run_trial(f"{args.name}-{args.seed}-{trial:03d}", options, further)
        lines.append({"trial": trial, "score": score} | {key: " ".join(value) for key, value in options.items()})
        table = pd.DataFrame(lines).sort_values("score", ascending=False)
        atomic_write(runs.RUNS / f"{args.name}-{args.seed}.csv", table.to_csv(index=False))
        print(f"trial {trial + 1} of {args.trials}: {score:.4f}, best so far {table['score'].iloc[0]:.4f}")
    print(table.head(10).to_string(index=False))


if __name__ == "__main__":
    sys.exit(run_script(main))
