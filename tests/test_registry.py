"""The registry: a family is a folder."""

import importlib
import sys

import pytest

from sparkdist import objectives, penalties, registry, updaters
from sparkdist.errors import InvalidCall
from sparkdist.objectives import Objective
from sparkdist.penalties import Penalty
from sparkdist.updaters import Updater

FAMILIES = [(objectives, Objective), (penalties, Penalty), (updaters, Updater)]


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A family of two members, a private file and a file that is no module."""
    folder = tmp_path / "made_up_family"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "zebra.py").write_text("__all__ = ['Zebra']\nclass Zebra: ...\nclass Helper: ...\n")
    (folder / "ant.py").write_text("__all__ = ['ant']\ndef ant(): return 'small'\n")
    (folder / "_shared.py").write_text("raise AssertionError('a private file was imported')\n")
    (folder / "notes.txt").write_text("not a member")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("made_up_family")
    for name in [name for name in sys.modules if name.startswith("made_up_family")]:
        del sys.modules[name]


def test_names_are_the_public_files_sorted(family):
    assert registry.names(family) == ["ant", "zebra"]


def test_names_imports_no_member(family):
    registry.names(family)
    assert "made_up_family.ant" not in sys.modules


def test_get_returns_the_one_public_object(family):
    assert registry.get(family, "ant")() == "small"
    assert registry.get(family, "zebra").__name__ == "Zebra"


def test_a_new_file_is_found_without_another_edit(family, tmp_path):
    (tmp_path / "made_up_family" / "bee.py").write_text("__all__ = ['bee']\nbee = 6\n")
    importlib.invalidate_caches()
    assert registry.names(family) == ["ant", "bee", "zebra"]
    assert registry.get(family, "bee") == 6


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("zebr", "there is no 'zebr'; there are ant, zebra. Did you mean 'zebra'?"),
        ("_shared", "there is no '_shared'; there are ant, zebra"),
        ("", "there is no ''; there are ant, zebra"),
        ("os.path", "there is no 'os.path'; there are ant, zebra"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(family, name, problem):
    with pytest.raises(InvalidCall) as caught:
        registry.get(family, name)
    assert caught.value.caller == "made_up_family"
    assert caught.value.problems == (problem,)


def test_a_message_names_the_family_and_not_its_package():
    with pytest.raises(InvalidCall, match="^objectives: 1 problem\n  - there is no 'logistics'"):
        registry.get(objectives, "logistics")


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_every_member_works_with_default_arguments(family, kind):
    for name in registry.names(family):
        assert isinstance(registry.get(family, name)(), kind)


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_every_member_is_a_public_name_of_its_family(family, kind):
    members = {registry.get(family, name).__name__ for name in registry.names(family)}
    assert members <= set(family.__all__)
    assert sorted(family.__all__) == sorted(set(family.__all__))
    assert {kind.__name__} <= set(family.__all__) - members
    assert all(hasattr(family, name) for name in family.__all__)


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_every_member_names_its_source(family, kind):
    for name in registry.names(family):
        assert "Source: " in registry.get(family, name).__doc__
