"""List what there is: objectives, solvers, updaters, policies, each with its source.

python -m sparkdist methods           # a table for each family
python -m sparkdist methods adagrad   # all about one of them
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import pkgutil
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from sparkdist.registry import unknown

__all__ = ["Member", "add_arguments", "as_table", "families", "run"]

#: Schedules are one file, not a folder: they are small, and combine.
_SCHEDULES = ("updaters", "_rates")


class Member(NamedTuple):
    """One objective, solver, updater ...: what its source says, which is not imported for it."""

    name: str
    summary: str
    source: str
    module: str
    public: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("name", nargs="?", help="show all about this one")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(options: argparse.Namespace) -> int:
    """List all, or tell all about one; the exit status is 2 if there is none of that name."""
    found = families()
    if options.name is None:
        width = shutil.get_terminal_size((100, 24)).columns
        tables = (as_table(family, members, width) for family, members in found.items())
        print(_as_json(found) if options.json else "\n\n".join(tables))
        return 0
    wanted = _plain(options.name)
    named = {
        family: [m for m in members if wanted in (_plain(m.name), _plain(m.public))]
        for family, members in found.items()
    }
    named = {family: members for family, members in named.items() if members}
    if not named:
        print(_unknown(options.name, found), file=sys.stderr)
        return 2
    pages = (_page(family, member) for family, members in named.items() for member in members)
    print(_as_json(named) if options.json else "\n\n".join(pages))
    return 0


def families(package: str = "sparkdist") -> dict[str, list[Member]]:
    """The members of each family, by its name.

    A family is a folder without Spark in which every public file has one public name, that of the
    file: what :mod:`sparkdist.registry` asks of one.
    """
    (root,) = importlib.import_module(package).__path__
    folders = [module.name for module in pkgutil.iter_modules([root]) if module.ispkg]
    found = {name: _family(Path(root), package, name) for name in folders}
    family, file = _SCHEDULES
    path = Path(root, family, f"{file}.py")
    found["schedules"] = list(_members(path, f"{package}.{family}.{file}", functions=False))
    return {name: members for name, members in sorted(found.items()) if members}


def _family(root: Path, package: str, name: str) -> list[Member]:
    """The members of a folder; none if it is no family."""
    members: list[Member] = []
    for file in pkgutil.iter_modules([str(root / name)]):
        if file.name.startswith("_"):
            continue
        path = root / name / f"{file.name}.py"
        own = list(_members(path, f"{package}.{name}.{file.name}"))
        if [_plain(member.public) for member in own] != [_plain(file.name)]:
            return []
        if re.search(rf"^ *(from|import) {package}\.spark\b", path.read_text("utf-8"), re.M):
            return []
        members.append(own[0]._replace(name=file.name))
    return members


def _members(path: Path, module: str, *, functions: bool = True) -> Iterator[Member]:
    """What a file defines and names in its ``__all__``."""
    if not path.is_file():
        return
    tree = ast.parse(path.read_text("utf-8"))
    public: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in public:
            if isinstance(node, ast.FunctionDef) and not functions:
                continue
            text = (ast.get_docstring(node) or "").replace("``", "")
            yield Member(node.name, text.partition("\n")[0], _source(text), module, node.name)


def _source(text: str) -> str:
    """The paragraph "Source: ..." of a docstring."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    found = (each.removeprefix("Source: ") for each in paragraphs if each.startswith("Source: "))
    return next(found, "")


def as_table(family: str, members: list[Member], width: int) -> str:
    """Name, what it is and source, side by side, or below each other on a narrow terminal."""
    name = max(len(member.name) for member in members) + 2
    left, lines = (width - 2 - name) // 2, [family]
    for member in members:
        if left < 24:
            texts = (*_lines(member.summary, width - 4), *_lines(member.source, width - 4))
            lines += [f"  {member.name}", *(f"    {text}" for text in texts)]
            continue
        what, source = (_lines(text, left - 2) for text in (member.summary, member.source))
        for cells in zip_longest([member.name], what, source, fillvalue=""):
            lines.append(f"  {cells[0]:<{name}}{cells[1]:<{left}}{cells[2]}".rstrip())
    return "\n".join(lines)


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _page(family: str, member: Member) -> str:
    """Signature and docstring; only this imports it."""
    thing = getattr(importlib.import_module(member.module), member.public)
    home = member.module.rpartition(".")[0]
    # Annotations are strings, which inspect shows with their quotes.
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))
    head = f"{home}.{member.public}{signature}"
    return f"{head}  ({family})\n\n{inspect.getdoc(thing)}"


def _as_json(found: dict[str, list[Member]]) -> str:
    told = {family: [member._asdict() for member in members] for family, members in found.items()}
    return json.dumps(told, indent=1)


def _unknown(name: str, found: dict[str, list[Member]]) -> str:
    known = sorted({member.name for members in found.values() for member in members})
    return f"sparkdist.methods: {unknown(name, known)}"


def _plain(name: str) -> str:
    """``SquaredHinge`` is squared_hinge."""
    return name.replace("_", "").lower()
