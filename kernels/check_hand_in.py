"""Whether what lies in a folder can be handed in: python kernels/check_hand_in.py TASK FOLDER [--data DIR]"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import InputError, run_script
from common.session import CACHE, open_source
from common.tasks import TASKS


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("folder", type=Path, help="holds submission.csv or masks/")
    parser.add_argument("--data", type=Path, help="the competition's folder (default: found as infer.py finds it)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for what is computed once")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise InputError(f"{args.folder}: no such folder; name the one that holds what is handed in")
    task = TASKS[args.task]
    source = open_source(task, args.data, "test", args.cache)
    task.validate(source.path, args.folder)
    print(f"valid: what {args.folder} holds for {args.task}, checked against {source.path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
