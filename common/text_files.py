"""Settings and facts that somebody else may have written: bounded, plain text, and refused in one line.

Every YAML and JSON file of the project is read here. A file is looked at before a library takes it into memory: its
size, its longest line, its encoding. Tables are read by `common.table_files`, which takes pandas.
"""

import codecs
import contextlib
import json
from pathlib import Path

import yaml

from common.errors import InputError

MB = 2**20
LIMITS = {"CSV": 256 * MB, "YAML": MB // 4, "JSON": 16 * MB, "text": 16 * MB}  # bytes of a file
CHUNK = 16 * MB  # a line that fills one of these is none of ours: the ids of a final test take one line of its table
NODES = 50_000  # of a YAML file with its aliases written out
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def looked_at(path: str | Path, kind: str, remedy: str, where: str | None = None) -> dict[str, int]:
    """{"bytes", "lines", "commas"} of a text file, read in pieces. InputError: not there, no plain file, larger than
    LIMITS[kind], a line of more than CHUNK bytes, other text than UTF-8 (a byte order mark is fine), NUL bytes."""
    path, where = Path(path), where or str(path)
    if not path.is_file():
        raise InputError(f"{where}: not found, or no plain file; {remedy}")
    found, decoder = {"bytes": 0, "lines": 0, "commas": 0}, codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            said = wrong_chunk(chunk, found["bytes"] == 0) or undecoded(decoder, chunk)
            found["bytes"] += len(chunk)
            if found["bytes"] > LIMITS[kind]:
                said = f"larger than {LIMITS[kind] / MB:g} MB, which no {kind} file here needs"
            if said:
                raise unreadable(where, kind, said, remedy)
            found["lines"] += max(chunk.count(b"\n"), chunk.count(b"\r"))
            found["commas"] += chunk.count(b",")
        if said := undecoded(decoder, b""):
            raise unreadable(where, kind, said, remedy)
    return found


def wrong_chunk(chunk: bytes, first: bool) -> str:
    """What is wrong with a piece of a text file; empty where nothing is."""
    if first and chunk.startswith(WIDE):
        return "is UTF-16: save it as UTF-8"
    if b"\0" in chunk:
        return "holds NUL bytes: it is binary, compressed or damaged, not text"
    whole = len(chunk) == CHUNK and b"\n" not in chunk and b"\r" not in chunk
    return f"holds a line of more than {CHUNK / MB:g} MB" if whole else ""


def undecoded(decoder, chunk: bytes) -> str:
    """Why a piece is no UTF-8 text; empty where it is."""
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        return f"is no UTF-8 text: {error.reason}"
    return ""


def unreadable(where, kind: str, said: str, remedy: str) -> InputError:
    kind = {"CSV": "a table"}.get(kind, kind)
    return InputError(f"{where}: cannot be read as {kind} ({said}); {remedy}")


def read_text(path: str | Path, kind: str = "text", remedy: str = "correct it", where: str | None = None) -> str:
    """Text of a file, without a byte order mark. InputError as `looked_at`."""
    looked_at(path, kind, remedy, where)
    return Path(path).read_text(encoding="utf-8-sig")


# settings


class Bounded(yaml.SafeLoader):
    """Plain types only, as SafeLoader; a document whose aliases multiply it, or a key given twice, is an error."""

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            written_out(node, {})
        return node


def written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a document with its aliases written out; yaml.YAMLError above NODES, for an alias inside itself and for
    a key given twice."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise yaml.YAMLError("an alias stands inside what it names")
        return known[id(node)]
    known[id(node)], parts = -1, []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError(f"{next(key for key in keys if keys.count(key) > 1)[:60]} is given twice")
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    total = 1
    for part in parts:
        total += written_out(part, known)
        if total > NODES:
            raise yaml.YAMLError(f"more than {NODES:,} values with its aliases written out")
    known[id(node)] = total
    return total


def read_yaml(path: str | Path, *, where: str | None = None, remedy: str = "correct it"):
    """Plain values of a YAML file; `where` names it in messages. InputError: as `looked_at`, no YAML, tags of other
    types, aliases that multiply (see NODES), a key twice."""
    where = where or str(path)
    text = read_text(path, "YAML", remedy, where)
    try:
        return yaml.load(text, Bounded)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:160]
        raise unreadable(where, "YAML", said, remedy) from error


# facts


def read_json(path: str | Path, *, wanted: type | None = dict, remedy: str = "write it again"):
    """Content of a JSON file. InputError: as `looked_at`, no JSON, a key twice, not of the type `wanted`."""
    return parse_json(read_text(path, "JSON", remedy), path, wanted=wanted, remedy=remedy)


def parse_json(text: str, path: str | Path, *, wanted: type | None = dict, remedy: str = "write it again"):
    """The same of a text that `path` holds."""
    try:
        content = json.loads(text, object_pairs_hook=once)
        json.dumps(content, ensure_ascii=False).encode()  # half a character cannot be printed or written later
    except (ValueError, RecursionError) as error:
        said = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not JSON ({said}); {remedy}") from error
    if wanted is not None and not isinstance(content, wanted):
        raise InputError(f"{path}: holds {type(content).__name__}, not {wanted.__name__}; {remedy}")
    return content


def once(pairs: list[tuple]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made


# what they hold


@contextlib.contextmanager
def content_of(path, remedy: str):
    """InputError naming the file where what it holds, which somebody may have changed, does not serve its user: a name
    is missing, a list stands for a number."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise InputError(f"{path}: does not hold what it should ({said}); {remedy} (--debug shows where)") from error
