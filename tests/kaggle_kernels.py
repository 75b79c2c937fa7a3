"""Kernels and data sets built from this checkout as a user would, and the mounts that a kernel of ours finds."""

from pathlib import Path

import kaggle_stand_in
import tiny_data
import tiny_landslide
import tiny_rts
import tiny_tiles

from common.errors import run_script
from kernels import build as builder

USER = "somebody"
SMALL = {"biomass": tiny_data.SMALL, "glacier": tiny_tiles.SMALL, "rts": tiny_rts.SMALL,
         "landslide": tiny_landslide.SMALL}  # fmt: skip


def build(out: Path, *options) -> Path:
    """The folder that kernels/build.py makes with these options below `out`, of one kernel or data set."""
    options, words = split_words(options)
    before = set(out.iterdir()) if out.is_dir() else set()
    given = [str(option) for option in (*options, "--user", USER, "--out", out, *words)]
    assert run_script(builder.main, given) == 0
    (made,) = set(out.iterdir()) - before
    return made


def split_words(options: tuple) -> tuple[tuple, tuple]:
    """(options of build.py, -- and the words for the calls)"""
    at = options.index("--") if "--" in options else len(options)
    return options[:at], options[at:]


def script_of(built: Path) -> Path:
    """The code file of a kernel's folder."""
    (path,) = (path for path in built.iterdir() if path.suffix in (".py", ".ipynb"))
    return path


def attached(layout: str, *, competitions=None, data_sets=None, kernels=None) -> dict[str, Path]:
    """{path below /kaggle/input: folder} of what is attached under these slugs."""
    given = {"competition": competitions, "data set": data_sets, "kernel": kernels}
    return {kaggle_stand_in.place(layout, kind, slug, USER): folder
            for kind, found in given.items() for slug, folder in (found or {}).items()}  # fmt: skip
