"""The rules of the house, read off the source: directions, names, sizes, links, dependencies.

Each rule is a function that returns the sentences of what is wrong; each is also shown something
wrong, so that a rule that sees nothing any more is seen itself.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import sparkdist
from benchmarks.lines import code_lines

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "sparkdist").rglob("*.py"))
}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
PAGES = [
    page
    for page in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: A room is a folder or a file right under sparkdist/.  Everybody may open these six ...
CORE = {"blocks", "errors", "fields", "layout", "registry", "skeleton"}
#: ... and a family, which is pure, nothing else but itself.
FAMILIES = {"codecs", "consistency", "objectives", "penalties", "solvers", "updaters"}
PURE = FAMILIES | {"datasets"}
#: The shells may open CORE, PURE and these.
SHELLS = {
    "wire": set(),
    "client": {"wire"},
    "server": {"wire"},
    "workers": {"client"},
    "methods": {"workers"},
    "simulate": {"wire", "methods", "workers", "client", "server"},
    "spark": {"methods", "workers", "client", "server"},
    "ml": {"spark"},
    "commands": {"spark", "methods", "client"},
}
#: The floors of the room that knows Spark: each may open those that are named, and what lies beside
#: them in the room but the front doors.
FLOORS = {"data": set(), "engines": {"data"}, "training": {"data", "engines"}}
FRONT_DOORS = {"sparkdist.spark.minimize", "sparkdist.spark.compare"}
#: What a person starts: it may use the public names, and nothing else may open it.
ENTRANCES = {"__main__", "commands"}
#: Where a library may be imported.  py4j comes with pyspark, which pins the one that it works with.
ONLY_IN = {
    "pyspark": {"spark", "ml", "commands"},
    "py4j": {"spark", "ml", "commands"},
    "flask": {"server"},
    "httptools": {"server"},
    "requests": {"client"},
    "prometheus_client": {"server"},
    "greenlet": {"simulate"},
}
BROUGHT_BY = {"py4j": "pyspark"}


# --- reading imports ------------------------------------------------------------------------


def room(module: str) -> str:
    """``sparkdist.spark.data.ingest`` is in the room ``spark``; ``sparkdist`` itself is in none."""
    return [*module.split("."), ""][1]


def nodes(tree: ast.AST, skip: str) -> Iterator[ast.AST]:
    """All nodes but the bodies of functions ("calls") or what only mypy reads ("types")."""
    for node in ast.iter_child_nodes(tree):
        call = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (call and "calls" in skip) and not (types and "types" in skip):
            yield node
            yield from nodes(node, skip)


def imports(source: str, module: str, *, skip: str = "") -> set[str]:
    """Names of the modules that a module imports, relative imports resolved."""
    found = set()
    package = module if module in PACKAGES else module.rpartition(".")[0]
    for node in nodes(ast.parse(source), skip):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            full = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else base for name in full}
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "sparkdist"}


SOURCES = {name: path.read_text() for name, path in FILES.items()}


# --- who may open which door ----------------------------------------------------------------


def may_open(here: str, there: str) -> bool:
    if there in ENTRANCES:
        return here in ENTRANCES
    if here in ("", there) or (there in CORE):
        return True
    if here in CORE | PURE or there == "":
        return here == "commands"
    if here in SHELLS:
        middle = here in ("spark", "ml", "simulate", "commands") and there not in SHELLS
        return middle or there in PURE | SHELLS[here]
    return there not in SHELLS  # the middle: result, model, problem ...


def climbs(here: str, there: str) -> bool:
    """Whether a module of one of the floors opens one of a floor above it."""
    floors = [name.split(".")[2] for name in (here, there) if name.startswith("sparkdist.spark.")]
    if len(floors) < 2 or floors[0] not in FLOORS:
        return False
    above = floors[1] in FLOORS and floors[1] not in FLOORS[floors[0]] | {floors[0]}
    return above or there in FRONT_DOORS


def forbidden_imports(source: str, module: str) -> list[str]:
    wrong = []
    for name in sorted(imports(source, module)):
        library = name.split(".")[0]
        if library in ONLY_IN and room(module) not in ONLY_IN[library]:
            wrong.append(f"{module} imports {name}, which is for {sorted(ONLY_IN[library])}")
        outwards = not may_open(room(module), room(name)) or climbs(module, name)
        if library == "sparkdist" and outwards:
            wrong.append(f"{module} imports {name}, which points outwards")
    return wrong


@pytest.mark.parametrize("module", FILES)
def test_imports_point_inwards(module):
    assert forbidden_imports(SOURCES[module], module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sparkdist.objectives.logistic", "import pyspark"),
        ("sparkdist.blocks", "def late():\n    from pyspark.sql import DataFrame"),
        ("sparkdist.result", "from py4j.protocol import Py4JJavaError"),
        ("sparkdist.spark.training.train", "import flask"),
        ("sparkdist.spark.data.visit", "from sparkdist.spark.engines import crew"),
        ("sparkdist.spark.engines.seat", "from sparkdist.spark.training.serving import Serving"),
        ("sparkdist.spark.training.stochastic", "from sparkdist.spark.minimize import minimize"),
        ("sparkdist.server.app", "import requests"),
        ("sparkdist.solvers.lbfgs", "from sparkdist.spark import dataset"),
        ("sparkdist.solvers.lbfgs", "from ..objectives import logistic"),
        ("sparkdist.codecs.top_k", "from sparkdist.wire import Sparse"),
        ("sparkdist.solvers.lbfgs", "from sparkdist import minimize"),
        ("sparkdist.errors", "from sparkdist.objectives import Objective"),
        ("sparkdist.result", "import sparkdist.spark.data.dataset"),
        ("sparkdist.workers.downpour", "from sparkdist.server import store"),
        (
            "sparkdist.spark.training.train",
            "if TYPE_CHECKING:\n    from sparkdist.ml import Estimator",
        ),
        ("sparkdist.spark.training.train", "from sparkdist.commands import main"),
        ("sparkdist", "def main():\n    from sparkdist.commands import main"),
        ("sparkdist.commands.train", "from sparkdist.server.store import Store"),
    ],
)
def test_an_import_that_points_outwards_is_seen(module, source):
    assert len(forbidden_imports(source, module)) == 1


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A closed walk through the graph, or nothing if there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for following in sorted(graph.get(node, ())):
            if found := visit(following):
                return found
        done.add(path.pop())
        return []

    return next(filter(None, map(visit, sorted(graph))), [])


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports(source, name, skip="types") for name, source in SOURCES.items()}
    assert cycle(graph) == []


def test_a_circle_is_seen():
    assert cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


def private_imports(source: str, public: set[str]) -> list[str]:
    """What a job imports from sparkdist beside its public names and what is open to everybody."""
    return [
        f"{name} is not public"
        for name in sorted(ours(imports(source, "job")))
        if name != "sparkdist" and room(name) not in public
    ]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_jobs_use_public_names_only(job):
    public = set(sparkdist.__all__) | CORE | {"ml", "commands"}
    assert private_imports(job.read_text(), public) == []


def test_a_job_that_uses_a_private_name_is_seen():
    assert private_imports("import sparkdist.spark.data.dataset", {"minimize"}) != []


# --- names ----------------------------------------------------------------------------------


def listed(tree: ast.Module) -> list[str] | None:
    """The module's ``__all__``, or None if it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def public_names(tree: ast.Module, package: str) -> set[str]:
    """What the package defines, or imports from its own modules, without an underscore."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}." if node.level else ""
            if f"{base}{node.module}.".startswith(f"{package}."):
                found |= {alias.asname or alias.name for alias in node.names}
    return {name for name in found if not name.startswith("_")}


def as_isort(name: str) -> tuple[bool, bool, str]:
    """The order of imports: CONSTANTS, then Classes, then functions."""
    return not name.isupper(), not name[0].isupper(), name


def wrong_all(source: str, package: str) -> list[str]:
    tree = ast.parse(source)
    names, public = listed(tree), public_names(tree, package)
    missing = sorted(public - set(names or ()))
    wrong = [f"{package}.{name} is not in __all__" for name in missing]
    if names and names != sorted(set(names), key=as_isort):
        wrong.append(f"__all__ of {package} is not sorted: {names}")
    return wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_all_of_a_package_is_complete_sorted_and_there(package):
    assert wrong_all(SOURCES[package], package) == []
    module = importlib.import_module(package)
    assert [name for name in getattr(module, "__all__", []) if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    "source",
    [
        "from sparkdist.spark.data.dataset import Dataset",
        "from .dataset import Dataset",
        "def load(): ...",
        "__all__ = ['b', 'a']\na = b = 1",
        "__all__ = ['Aa', 'BB']\nAa = BB = 1",
        "__all__ = ['a', 'a']\na = 1",
    ],
)
def test_a_wrong_all_is_seen(source):
    assert len(wrong_all(source, "sparkdist.spark")) == 1


@pytest.mark.parametrize(
    "module",
    [m for m in FILES if room(m) in FAMILIES and m not in PACKAGES and "._" not in m],
)
def test_a_member_of_a_family_has_one_public_name(module):
    assert len(listed(ast.parse(SOURCES[module])) or []) == 1


def undocumented(name: str, thing: object) -> list[str]:
    """Public classes, functions and methods under a name that do not say what they do."""
    if inspect.ismodule(thing):
        names = getattr(thing, "__all__", [])
        return sum((undocumented(f"{name}.{n}", getattr(thing, n)) for n in names), [])
    if inspect.isclass(thing):
        generated = (thing.__doc__ or "").startswith(f"{thing.__name__}(")  # by dataclass
        methods = {n: getattr(thing, n) for n, m in vars(thing).items() if is_method(n, m)}
        wrong = sum((undocumented(f"{name}.{n}", m) for n, m in methods.items()), [])
        return wrong if thing.__doc__ and not generated else [name, *wrong]
    speaks = isinstance(thing, property) or inspect.isroutine(thing)
    return [name] if speaks and not inspect.getdoc(thing) else []


def is_method(name: str, member: object) -> bool:
    kinds = (property, classmethod, staticmethod)
    return not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))


def test_every_public_name_says_what_it_does():
    assert undocumented("sparkdist", sparkdist) == []


def test_a_name_without_a_docstring_is_seen():
    class Mute:
        def speak(self): ...

        @property
        def voice(self): ...

        @classmethod
        def born(cls): ...

    assert undocumented("Mute", Mute) == ["Mute", "Mute.speak", "Mute.voice", "Mute.born"]
    assert undocumented("f", lambda: None) == ["f"]


# --- sizes ----------------------------------------------------------------------------------

FUNCTION_LINES, FILE_LINES = 40, 250


def too_long(source: str, name: str) -> list[str]:
    lines = code_lines(source)
    wrong = [f"{name} has {len(lines)} lines of code"] if len(lines) > FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The signature is one line: a front door that lists its arguments is not long.
            size = 1 + len(lines & set(range(node.body[0].lineno, node.end_lineno + 1)))
            if size > FUNCTION_LINES:
                wrong.append(f"{name}.{node.name} has {size} lines of code")
    return wrong


@pytest.mark.parametrize("module", FILES)
def test_functions_and_files_are_short(module):
    assert too_long(SOURCES[module], module) == []


def test_what_is_too_long_is_seen_and_prose_is_free():
    body = "    x = 1\n" * 39
    assert (
        too_long(f'def f():\n    """One.\n\n    Two.\n    """\n    # Three.\n\n{body}', "m") == []
    )
    assert too_long(f"def f():\n{body}    return x\n", "m") == ["m.f has 41 lines of code"]
    assert too_long(f"def f(\n    a,\n    b,\n):\n{body}", "m") == []
    assert too_long("x = 1\n" * 251, "m") == ["m has 251 lines of code"]


# --- pages ----------------------------------------------------------------------------------

LINK = re.compile(r'\]\(([^)\s]+)(?: "[^"]*")?\)|^\[[^\]]+\]: (\S+)|(?:src|href)="([^"]+)"', re.M)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(
        r"^#+ (.+?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, page: Path) -> list[str]:
    wrong = []
    for groups in LINK.findall(without_code(text)):
        link = "".join(groups)
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            wrong.append(f"{page.name}: {link} is not there")
        elif anchor and anchor not in anchors(text if not path else target.read_text()):
            wrong.append(f"{page.name}: {link} names no heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    assert broken_links(page.read_text(), page) == []


@pytest.mark.parametrize(
    "text",
    ["[a](nowhere.md)", "![a](no.png)", '<img src="no.svg">', "[a]: no.md", "# B\n[a](#c)"],
)
def test_a_broken_link_is_seen(text):
    assert len(broken_links(text, ROOT / "pyproject.toml")) == 1


def test_a_link_to_a_heading_and_a_link_in_code_are_fine():
    text = "# The `one` way, once\n[a](#the-one-way-once) `[b](no.md)`\n```\n[c](no.md)\n```\n"
    assert broken_links(text, ROOT / "pyproject.toml") == []


# --- jobs -----------------------------------------------------------------------------------


def help_of(job: Path) -> subprocess.CompletedProcess[str]:
    """Ask a job for help where there is no Java."""
    nowhere = {"PATH": "/nowhere", "JAVA_HOME": "/nowhere", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(job), "--help"]
    return subprocess.run(
        command, env=os.environ | nowhere, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_explains_itself_without_java(job):
    answer = help_of(job)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage:")


def test_a_job_that_starts_spark_before_it_reads_its_arguments_is_seen(tmp_path):
    job = tmp_path / "hasty.py"
    job.write_text("from pyspark.sql import SparkSession as S\nS.builder.getOrCreate()\n")
    assert help_of(job).returncode != 0


# --- dependencies ---------------------------------------------------------------------------


def requirements(*extras: str) -> list[Requirement]:
    """The project's dependencies, or those of some extras."""
    optional = PROJECT["optional-dependencies"]
    lines = sum((optional[e] for e in extras), []) if extras else PROJECT["dependencies"]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


def libraries(wanted: list[Requirement]) -> dict[str, set[str]]:
    """The top-level modules of each distribution: scikit-learn is imported as sklearn."""
    found: dict[str, set[str]] = {}
    for requirement in wanted:
        files = [file.parts for file in distribution(requirement.name).files or []]
        tops = {parts[0].removesuffix(".py") for parts in files if parts[-1].endswith(".py")}
        found[requirement.name] = {top for top in tops if top.isidentifier()}
    return found


def reached(graph: dict[str, set[str]], roots: set[str]) -> set[str]:
    """What the roots import, and what that imports, and so on."""
    found, waiting = set(), set(roots)
    while waiting:
        found.add(node := waiting.pop())
        waiting |= graph.get(node, set()) - found
    return found


def third_party(lazy: bool) -> set[str]:
    """Libraries that sparkdist imports: all, or those that are needed to import its modules.

    A private module that only a call imports may need a library that is optional.
    """
    skip = "types" if lazy else "calls types"
    graph = {name: imports(source, name, skip=skip) for name, source in SOURCES.items()}
    roots = {name for name in graph if lazy or "._" not in name}
    tops = {name.split(".")[0] for name in reached(graph, roots)}
    return tops - set(sys.stdlib_module_names) - {"sparkdist"}


def unused(wanted: dict[str, set[str]], used: set[str]) -> list[str]:
    return sorted(name for name, modules in wanted.items() if not modules & used)


def undeclared(wanted: dict[str, set[str]], used: set[str]) -> list[str]:
    known = set().union(*wanted.values())
    return sorted(name for name in used if BROUGHT_BY.get(name, name) not in known)


def test_every_dependency_is_imported():
    by_pyspark = {"pandas"}  # mapInArrow asks for it, and PySpark does not declare it
    assert unused(libraries(requirements()), third_party(lazy=True) | by_pyspark) == []


def test_every_import_is_a_dependency_and_an_optional_one_waits_until_it_is_needed():
    extras = [extra for extra in PROJECT["optional-dependencies"] if extra != "dev"]
    optional = libraries(requirements(*extras))
    assert undeclared(libraries(requirements()), third_party(lazy=False)) == []
    assert undeclared(libraries(requirements()) | optional, third_party(lazy=True)) == []


def test_a_missing_and_an_idle_dependency_are_seen():
    wanted = libraries([Requirement("scikit-learn>=1"), Requirement("numpy")])
    assert unused(wanted, {"numpy", "scipy"}) == ["scikit-learn"]
    assert undeclared(wanted, {"numpy", "scipy", "sklearn"}) == ["scipy"]
    assert imports("def f():\n    import scipy", "m", skip="calls") == set()
    assert reached({"a": {"b"}, "b": {"c"}, "_d": {"e"}}, {"a"}) == {"a", "b", "c"}


def unpinned(wanted: list[Requirement], pins: list[Requirement]) -> list[str]:
    """Requirements for which some Python has no pin, or one that they do not allow."""
    wrong = []
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        found = [p for p in pins if canonicalize_name(p.name) == name]
        versions = [spec.version for pin in found for spec in pin.specifier]
        everywhere = all(
            any(p.marker is None or p.marker.evaluate({"python_version": v}) for p in found)
            for v in ("3.10", "3.11", "3.12", "3.13")
        )
        if not everywhere or not all(v in requirement.specifier for v in versions):
            wrong.append(str(requirement))
    return wrong


def test_every_requirement_is_locked():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert unpinned(requirements() + requirements(*PROJECT["optional-dependencies"]), pins) == []


@pytest.mark.parametrize("pin", ["scipy==1", "numpy==1", "numpy==3; python_version >= '3.11'"])
def test_a_requirement_without_its_pin_is_seen(pin):
    assert unpinned([Requirement("numpy>=2")], [Requirement(pin)]) == ["numpy>=2"]


# --- what the pages promise -----------------------------------------------------------------


def unknown_tests(page: str, files: dict[str, str]) -> list[str]:
    """Tests that a page names behind the name of their file, and that are not there."""
    wrong, current = [], ""
    for name in re.findall(r"`(test_\w+(?:\.py)?)`", page):
        if name.endswith(".py"):
            current = name
        if not (
            name in files if name.endswith(".py") else f"def {name}(" in files.get(current, "")
        ):
            wrong.append(name)
    return wrong


def test_the_tests_that_pages_name_are_there():
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    assert [unknown_tests(page.read_text(), files) for page in PAGES] == [[] for _ in PAGES]


def test_a_test_that_is_not_there_is_seen():
    page = "`test_a.py`: `test_one`, `test_two`; `test_b.py`: `test_one`"
    assert unknown_tests(page, {"test_a.py": "def test_one(): ..."}) == [
        "test_two", "test_b.py", "test_one"
    ]  # fmt: skip


def test_the_server_process_starts_without_what_it_does_not_need():
    program = (
        "import sys, sparkdist.server.process, sparkdist.server.pass_setup, sparkdist.server.setup;"
        "print(*{'scipy', 'pyspark', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")
