"""Folders that kernels/build.py makes, in this process."""

from pathlib import Path

from common.errors import run_script
from kernels import build

USER = "some-body"


def made(out: Path, *words, user=USER) -> Path:
    """The folder that build.py writes with these words."""
    assert run_script(build.main, ["--user", user, "--out", str(out), *map(str, words)]) == 0
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


def refused(capsys, *words) -> str:
    """What build.py says, in one line, of words that it does not take."""
    capsys.readouterr()
    assert run_script(build.main, list(map(str, words))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def files_of(folder: Path) -> set[str]:
    """Paths of the files of a data set, without those that every data set has."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return paths - {"dataset-metadata.json", "contents.txt"}
