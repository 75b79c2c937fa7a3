"""What lies beside a map until it is written: finished windows, and what could not be read of the scene (a job that
goes on after a kill does not read those windows again, and must say so all the same)."""

import json
from pathlib import Path

from common.engine.side_store import SideStore, claim, lock_of
from common.files import atomic_write

Blocks = dict[tuple[int, int], tuple[int, int, int, int]]  # (row, column) of a block -> its y, x, height, width


def notes_path(target: Path) -> Path:
    return target.with_name(f".{target.stem}.damaged.json")


def parts_path(target: Path) -> Path:
    """Folder of the finished windows."""
    return target.with_name(f".{target.stem}.parts")


def remove_leftovers(target: Path) -> None:
    """Remove what a job that was killed after its last step left beside a finished map, if nobody has it in hand."""
    parts, notes = parts_path(target), notes_path(target)
    if not any(path.exists() for path in (parts, notes, lock_of(target))) or (held := claim(target)) is None:
        return
    with held:
        if parts.is_dir():
            SideStore(parts, {}).close()
        notes.unlink(missing_ok=True)


def note_damage(path: Path, scene: list, damaged: Blocks) -> None:
    """Keep the damaged blocks; scene: what the file is (its name, size and time)."""
    blocks = [[*block, *extent] for block, extent in damaged.items()]
    atomic_write(path, json.dumps({"scene": scene, "blocks": blocks}))


def known_damage(path: Path, scene: list) -> Blocks:
    """The blocks that were noted for this very file; none for another."""
    try:
        noted = json.loads(path.read_text())
        if noted["scene"] != scene:
            return {}
        return {(row, column): tuple(extent) for row, column, *extent in noted["blocks"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def say_damage(name: str, extents: list) -> bool:
    """A line for each extent (y, x, height, width) that could not be read; whether there is one."""
    for y, x, height, width in sorted(map(tuple, extents)):
        print(f"{name}: rows {y} to {y + height - 1}, columns {x} to {x + width - 1} could not be read: no data")
    return bool(extents)
