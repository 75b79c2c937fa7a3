"""Every reader of tables, YAML, JSON, polygons and checkpoints, fed with damaged files; prints what became of them.

python tests/faults/fuzz_tables.py --inputs 300           # of each reader; --only YAML: readers whose name holds that
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parents[1])) if path not in sys.path]

from fuzz_engine import Result, Target, fuzz, table  # noqa: E402
from pickle_mutations import CANARY, any_checkpoint, any_tensors  # noqa: E402
from text_mutations import any_text  # noqa: E402
from text_seeds import formats  # noqa: E402

MUTATIONS = {".pt": any_checkpoint, ".pth": any_checkpoint, ".safetensors": any_tensors}


def targets(folder: Path) -> list[Target]:
    """A target for each format; whole files that only a library can write are made in `folder`."""
    return [target_of(name, *found) for name, found in formats(folder).items()]


def target_of(name: str, files: dict[str, bytes], damaged: str, read) -> Target:
    """The file `damaged` is mutated; the others lie beside it as they are."""

    def checked(home: Path) -> None:
        read(home / damaged)
        assert not CANARY.exists(), "a pickle was executed"

    mutate = MUTATIONS.get(Path(damaged).suffix, any_text)
    return Target(name, [files], mutate, checked, damaged=(damaged,))


def run(inputs: int, folder: Path, *, only: str = "", seed: int = 0) -> list[Result]:
    """What became of `inputs` inputs of each format whose name holds `only`."""
    chosen = [target for target in targets(folder) if only.lower() in target.name.lower()]
    results = []
    for target in chosen:
        results.append(fuzz(target, folder / "corpus", inputs=inputs, seed=seed))
        print(f"{target.name}: {inputs} inputs", file=sys.stderr)
    if CANARY.exists():
        results[0].faults.append((-1, "a pickle was executed"))
    return results


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=300, help="of each reader")
    parser.add_argument("--only", default="", help="readers whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs of use and for faults; else a temporary one")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        results = run(args.inputs, args.keep or Path(folder), only=args.only, seed=args.seed)
    print(table(results))
    for result in results:
        for number, said in result.faults:
            print(f"{result.name}, input {number}: {said}")
    return 1 if any(result.faults for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
