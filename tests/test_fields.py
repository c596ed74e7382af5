"""Fields: what members of all families say of arguments that cannot work."""

import dataclasses
import inspect
import pickle
import re
from math import inf, nan

import numpy as np
import pytest

from sparkdist import codecs, consistency, objectives, penalties, registry, updaters, workers
from sparkdist.errors import InvalidCall
from sparkdist.fields import (
    below_1,
    collect,
    flag,
    not_negative,
    optional,
    positive,
    settle,
    share,
    whole,
)
from sparkdist.simulate import latency
from sparkdist.workers import Epochs

MEMBERS = [
    *(
        registry.get(family, name)
        for family in (codecs, consistency, objectives, penalties, updaters, workers)
        for name in registry.names(family)
    ),
    *(getattr(latency, name) for name in latency.__all__ if name[0].islower()),
    *(getattr(updaters, name) for name in updaters.__all__ if name[0].islower()),
    Epochs,
]


def arguments(member):
    """Names of the fields that users set: they are shown."""
    return [one.name for one in dataclasses.fields(member) if one.init and one.repr]


CASES = [
    (member, name)
    for member in dict.fromkeys(MEMBERS)
    if dataclasses.is_dataclass(member)
    for name in arguments(member)
    # What train is given has been looked at there; shapes the run fills in.
    if (member, name) not in ((Epochs, "worker"), (codecs.power_sgd, "shapes"))
]


def good(member):
    """Arguments for what has no default."""
    given = {"seconds": [[1.0]] if member is latency.trace else 1.0, "factors": [1.0]}
    given |= dict.fromkeys(("mean", "median", "sigma", "least", "shape", "rate", "final"), 1.0)
    given |= dict.fromkeys(("bound", "extra", "pushes", "steps", "every"), 1)
    given |= {"batch_size": 1, "epochs": 1, "seed": 0, "factor": 0.5, "decay": 0.5, "k": 1.0}
    given |= {"latency": 1.0, "target": 1.0, "warmup_steps": 1, "inner": codecs.sign()}
    parameters = inspect.signature(member).parameters.values()
    return {p.name: given[p.name] for p in parameters if p.default is p.empty}


@pytest.mark.parametrize(
    "bad", ["x", nan, object(), [object()], {}], ids=["str", "nan", "object", "list", "dict"]
)
@pytest.mark.parametrize(("member", "name"), CASES, ids=lambda one: getattr(one, "__name__", one))
def test_what_is_of_another_type_is_one_clear_problem(member, name, bad):
    member(**good(member))
    with pytest.raises(InvalidCall) as caught:
        member(**good(member) | {name: bad})
    (problem,) = caught.value.problems
    assert re.match(rf"{name} (must|has)", problem), problem


def test_rules_by_hand():
    numbers = [-inf, -1, -1e-300, 0, 1e-300, 0.5, 1, 2, inf, nan, True, None, "1", 1j, 10**400]

    def allowed(rule):
        found = []
        for one in numbers:
            try:
                found.append(rule(one))
            except ValueError as error:
                assert str(error).endswith(f"; it is {one!r}")
        return found

    assert allowed(positive) == [1e-300, 0.5, 1, 2]
    assert allowed(not_negative) == [0, 1e-300, 0.5, 1, 2]
    assert allowed(below_1) == [0, 1e-300, 0.5]
    assert allowed(share) == [1e-300, 0.5, 1]
    assert allowed(whole(0)) == [0, 1, 2, 10**400]
    assert allowed(whole(1, 2)) == [1, 2]
    assert allowed(flag) == [True]
    assert flag(np.True_) is True and flag(np.False_) is False
    assert allowed(optional(whole(2, 9))) == [2, None]


def test_numbers_of_numpy_become_those_of_python():
    @dataclasses.dataclass(frozen=True)
    class Member:
        rate: float
        steps: int

        def __post_init__(self):
            settle(self, rate=positive, steps=whole(1))

    found = Member(np.float32(0.5), np.int64(3))
    assert (type(found.rate), type(found.steps)) == (float, int)
    assert repr(found).endswith("Member(rate=0.5, steps=3)")
    with pytest.raises(InvalidCall) as caught:
        Member(0, np.float64(3.0))
    assert caught.value.problems == (
        "rate must be a finite number > 0; it is 0",
        f"steps must be a whole number >= 1; it is {np.float64(3.0)!r}",
    )


def test_problems_of_several_calls_are_collected():
    problems = ["before"]
    with collect(problems):
        Epochs(0, 1, -1)
    with collect(problems):
        assert pickle.loads(pickle.dumps(Epochs(np.int64(8), 1, 0))) == Epochs(8, 1, 0)
    with pytest.raises(KeyError), collect(problems):
        raise KeyError
    assert problems == [
        "before",
        "batch_size must be a whole number >= 1; it is 0",
        "seed must be a whole number >= 0; it is -1",
    ]
