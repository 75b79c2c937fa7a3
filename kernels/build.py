"""One folder per Kaggle kernel or data set: its metadata and what is uploaded. kernels/push.sh sends it.

python kernels/build.py biomass-infer --user NAME                      # build/biomass-infer: one self-contained script
python kernels/build.py biomass-train --notebook -- --fold 0 --epochs 5  # words for its main calls
python kernels/build.py all                                            # every kernel
python kernels/build.py --dataset weights runs/biomass-2x2 runs/biomass-3x3 --blend out/blend.json
python kernels/build.py --dataset folds data/csiro-biomass/folds.csv
python kernels/build.py --dataset encoder weights/vit_base_patch14_reg4_dinov2.lvd142m.safetensors
python kernels/build.py --wheels --python 3.12                         # what the image lacks
"""

import argparse
import json
import sys
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.engine.checkpoint import WEIGHTS
from common.errors import InputError, run_script
from common.settings import Parser
from kernels import payload, specs
from kernels.data_sets import DATA_SETS, replaced_folder, write_data_set
from kernels.wheels import IMAGE, PYTHONS

T4 = "NvidiaTeslaT4"  # two of them; enable_gpu alone gives a P100, on which current torch fails


class Words(argparse.ArgumentParser):
    """Errors in one line that name the nearest option, as the scripts have them."""

    error, nearest = Parser.error, Parser.nearest


def parser_of() -> Words:
    parser = Words(prog="build.py", description=__doc__, allow_abbrev=False,
                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"all, or of {', '.join(specs.kernel_names())}")
    parser.add_argument("--user", help="Kaggle user name (default: KAGGLE_USERNAME, else of kaggle.json)")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for what is built (default: build)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    kernel = parser.add_argument_group("kernels; words after -- are added to their train.py or infer.py calls")
    kernel.add_argument("--title", help="another than the kernel.yaml's, and so another slug: a second of its kind")
    kernel.add_argument("--notebook", action="store_true", help="the same as .ipynb")
    kernel.add_argument("--attach", action="append", default=[], metavar="OWNER/SLUG", help="one more data set")
    kernel.add_argument("--attach-kernel", action="append", default=[], metavar="OWNER/SLUG",
                        help="one more kernel, for its output: how a training that was stopped goes on")  # fmt: skip
    kernel.add_argument("--data-set", action="append", metavar="OWNER/SLUG", help="these data sets alone; or none")
    kernel.add_argument("--competition", action="append", metavar="SLUG", help="these competitions alone; or none")
    kernel.add_argument("--time-budget", metavar="T", help="of the whole kernel, 8.5h or 30m; or none")
    sets = parser.add_argument_group("data sets")
    sets.add_argument("--dataset", nargs="+", metavar=("KIND", "PATH"),
                      help=f"{', '.join(DATA_SETS)}: runs, folds.csv, pretrained files, nothing")  # fmt: skip
    sets.add_argument("--name", help="of the data set (default: landfold-…)")
    sets.add_argument("--licence", help="as Kaggle names it (default: other)")
    sets.add_argument("--blend", type=Path, action="append", metavar="FILE", help="weights: blends of these runs")
    sets.add_argument("--use", choices=WEIGHTS, help="weights: which of a fold's (default: as the run was trained)")
    sets.add_argument("--wheels", action="store_true", help="the same as --dataset wheels")
    sets.add_argument("--python", action="append", choices=PYTHONS, help="wheels: of the image (default: all of these)")
    sets.add_argument("--image", type=Path, metavar="FILE", help=f"wheels: pip freeze of it (default: {IMAGE.name})")
    return parser


def chosen(own: list[str], given: list[str] | None) -> list[str]:
    """What a kernel lists, or what the command line says in its place; none: nothing."""
    return own if given is None else [name for name in given if name != "none"]


def runtime_kernel(name: str, found: dict, state: dict, words: list[str], budget: str | None) -> dict:
    """What kernels/runtime.py is given: every call checked with the words that are added to it."""
    where = f"kernels/{name}/kernel.yaml"
    calls = [specs.words_of(call, where) for call in found["calls"]]
    script = specs.main_script(calls)
    calls = [specs.add_words(call, words) if call[0] == script else call for call in calls]
    for call in calls:
        specs.check_call(call, found["task"], where)
    return {
        "name": name,
        "task": found["task"],
        "version": payload.version_of(state),
        "commit": state["commit"] + ("-dirty" if state["dirty"] else ""),
        "gpu": found["gpu"],
        "calls": calls,
        "time_budget": specs.time_budget(found["time_budget"] if budget is None else budget, where),
        "hand_in": found["hand_in"],
        "packages": specs.bounds(found["packages"], where),
        "processes": found["processes"],
    }


def metadata_of(found: dict, user: str, code_file: str, args) -> dict:
    """kernel-metadata.json: private, without a network, on two T4 where a GPU is asked for."""
    slug = specs.slugify(found["title"])
    machine = {"machine_shape": T4} if found["gpu"] else {}
    return {
        "id": f"{user}/{slug}",
        "title": found["title"],
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook" if args.notebook else "script",
        "is_private": True,
        "enable_gpu": found["gpu"],
        "enable_internet": False,
        **machine,
        "dataset_sources": specs.owned([*chosen(found["datasets"], args.data_set), *args.attach], user, "data set"),
        "competition_sources": chosen(found["competitions"], args.competition),
        "kernel_sources": specs.owned([*found["kernels"], *args.attach_kernel], user, "kernel"),
        "model_sources": [],
    }


def build_kernel(name: str, user: str, state: dict, packed: bytes, words: list[str], args) -> Path:
    """build/<name>/ with kernel-metadata.json and the code file; the folder."""
    found = specs.read_kernel(name, args.title)
    kernel = runtime_kernel(name, found, state, words, args.time_budget)
    kind, suffix = ("notebook", ".ipynb") if args.notebook else ("script", ".py")
    code_file = specs.slugify(found["title"]) + suffix
    metadata = metadata_of(found, user, code_file, args)
    source = payload.write_source(kernel, found["title"], packed, kind)
    target = args.out / name
    with replaced_folder(target) as folder:
        (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
        (folder / code_file).write_text(source)
    print(f"{target / code_file}: {len(source.encode()):,} bytes, {metadata['id']} {kernel['version']}")
    return target


def build_kernels(args, words: list[str]) -> int:
    names = specs.kernel_names() if args.kernels == ["all"] else args.kernels
    if not names:
        raise InputError(f"KERNEL: name one or several of {', '.join(specs.kernel_names())}, or all")
    for option in ("name", "licence", "blend", "use", "python", "image"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option}: is of data sets; give it with --dataset")
    if args.title and len(names) > 1:
        raise InputError("--title: is of one kernel; build them one by one")
    user, state = specs.user_name(args.user), payload.git_state()
    packed = payload.pack(payload.carried_files())
    for name in names:
        build_kernel(name, user, state, packed, words, args)
    for path in payload.left_out():
        print(f"not carried: {path} is not tracked; git add it")
    if state["dirty"]:
        print("not committed: something differs from the commit that is named; push.sh sends no such kernel")
    return 0


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    own = list(takewhile(lambda word: word != "--", argv))
    words = argv[len(own) + 1 :]
    args = parser_of().parse_args(own)
    if args.wheels and args.dataset:
        raise InputError("--wheels: is a data set of its own; give it without --dataset")
    args.dataset = ["wheels"] if args.wheels else args.dataset
    if not args.dataset:
        return build_kernels(args, words)
    of_kernels = ("title", "notebook", "attach", "attach_kernel", "data_set", "competition", "time_budget")
    given = ["--" + name.replace("_", "-") for name in of_kernels if getattr(args, name)]
    if given or args.kernels or words:
        what = [*given, *args.kernels, "--"][0]
        raise InputError(f"{what}: is of kernels; build a data set with --dataset and its own options alone")
    return write_data_set(args)


if __name__ == "__main__":
    sys.exit(run_script(main))
