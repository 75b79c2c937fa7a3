"""A script that needs no package of ours: a template and the definitions of common that it uses, as one text.

Every definition is copied word for word from where it stands, with all it uses itself; nothing is written twice.
"""

import ast
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "common"


@dataclass
class Source:
    """A module: its text, its top-level definitions and what it imports from ours and from elsewhere."""

    lines: list[str]
    nodes: dict[str, ast.stmt] = field(default_factory=dict)  # name -> definition
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)  # name here -> (module, name there)
    others: dict[str, str] = field(default_factory=dict)  # name here -> import statement
    rest: list[ast.stmt] = field(default_factory=list)  # statements without a name


def read_source(path: Path) -> Source:
    text = path.read_text()
    source = Source(text.splitlines())
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            add_import(source, node)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            source.nodes[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]:
                source.nodes[name] = node
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            source.rest.append(node)
    return source


def add_import(source: Source, node: ast.Import | ast.ImportFrom) -> None:
    for alias in node.names:
        here = alias.asname or alias.name.split(".")[0]
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE:
            source.ours[here] = (node.module, alias.name)
        else:
            source.others[here] = ast.unparse(type(node)(**{**vars(node), "names": [alias]}))


def drop_methods(node: ast.stmt, names: tuple[str, ...]) -> list[ast.stmt]:
    return [child for child in node.body if getattr(child, "name", None) in names] if names else []


def used_names(node: ast.stmt, without: list[ast.stmt], annotations: bool = False) -> set[str]:
    """Names that a definition reads when it is made or called, but for what is left out of it.

    annotations: those in annotations too, which are not evaluated.
    """
    found, queue = set(), [node]
    while queue:
        item = queue.pop()
        if item in without:
            continue
        if isinstance(item, ast.Name):
            found.add(item.id)
        for name, value in ast.iter_fields(item):
            if annotations or name not in ("annotation", "returns"):
                children = value if isinstance(value, list) else [value]
                queue += [child for child in children if isinstance(child, ast.AST)]
    return found


def segment(source: Source, node: ast.stmt, without: list[ast.stmt]) -> str:
    """The text of a definition with its decorators and the comment above it."""
    first = first_line(node)
    while first > 1 and source.lines[first - 2].startswith("#"):
        first -= 1
    gone = {line for child in without for line in range(first_line(child), child.end_lineno + 2)}
    kept = [line for number, line in enumerate(source.lines[first - 1 : node.end_lineno], first) if number not in gone]
    return "\n".join(kept).rstrip()


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


class Bundle:
    """Which definitions of which module are needed, and the imports from elsewhere that they need."""

    def __init__(self, stubs: dict[str, str], left_out: dict[str, tuple[str, ...]]):
        self.stubs, self.left_out = stubs, left_out
        self.sources: dict[str, Source] = {}
        self.needed: dict[str, set[str]] = {}
        self.imports: set[str] = set()
        self.stubbed: set[str] = set()
        self.order: list[str] = []

    def need(self, module: str, name: str) -> None:
        """Add a definition of one of our modules and, first, all that it uses."""
        if name in self.stubs:
            self.stubbed.add(name)
            return
        if name in self.needed.setdefault(module, set()):
            return
        if module not in self.sources:
            self.sources[module] = read_source(Path(importlib.util.find_spec(module).origin))
        source = self.sources[module]
        self.needed[module].add(name)
        self.follow(module, source, source.nodes[name])
        if module not in self.order:
            self.order.append(module)

    def follow(self, module: str, source: Source, node: ast.stmt) -> None:
        without = drop_methods(node, self.left_out.get(getattr(node, "name", ""), ()))
        named = used_names(node, without, annotations=True)
        self.imports |= {line for name, line in source.others.items() if name in named}
        for name in sorted(used_names(node, without)):
            if name in source.ours:
                self.need(*source.ours[name])
            elif name in source.nodes and module:
                self.need(module, name)

    def text_of(self, module: str) -> list[str]:
        source, parts = self.sources[module], []
        nodes = {id(source.nodes[name]): source.nodes[name] for name in self.needed[module]}
        for node in sorted(nodes.values(), key=lambda node: node.lineno):
            parts.append(segment(source, node, drop_methods(node, self.left_out.get(getattr(node, "name", ""), ()))))
        return parts

    def check_unique(self) -> None:
        seen: dict[str, str] = {}
        for module, names in self.needed.items():
            for name in names:
                if seen.setdefault(name, module) != module:
                    raise RuntimeError(f"{name} is defined in {seen[name]} and in {module}: rename one of them")


def bundle(
    template: Path, *, stubs: dict[str, str], left_out: dict[str, tuple[str, ...]], imports=(), first="", patch=""
) -> str:
    """The text of `template` with what it imports from our package put in its place.

    stubs: {name: text} to stand for a definition that is then not followed; left_out: {class: methods it does without};
    imports: further import lines; first: text after them; patch: text after the definitions, before the template's own.
    Annotations are not evaluated in the result. RuntimeError where two modules define the same name.
    """
    source, whole = read_source(template), Bundle(stubs, left_out)
    own = [*dict.fromkeys(source.nodes.values()), *source.rest]
    for node in own:
        whole.follow("", source, node)
    whole.check_unique()
    text = template.read_text()
    heading = ast.get_docstring(ast.parse(text), clean=False)
    lines = sorted({line for line in {*whole.imports, *imports} if "__future__" not in line})
    head = [f'"""{heading}"""', "from __future__ import annotations\n\n" + "\n".join(lines)]
    inlined = [part for module in whole.order for part in whole.text_of(module)]
    body = [segment(source, node, []) for node in sorted(own, key=lambda node: node.lineno)]
    head += [first.strip("\n")] if first else []
    return join_parts([*head, *(stubs[name] for name in sorted(whole.stubbed)), *inlined, patch.strip("\n"), *body])


def join_parts(parts: list[str]) -> str:
    """Two empty lines around functions and classes, none between constants of one line."""
    text = ""
    for before, part in zip(["", *parts], parts, strict=False):
        constants = all("\n" not in one and one and not one.startswith('"') for one in (before, part))
        text += ("" if not text or not part else "\n" if constants else "\n\n\n") + part
    return text + "\n"
