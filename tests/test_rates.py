"""Learning rates: schedules against their closed forms, and what is refused."""

import pickle
from fractions import Fraction
from math import cos, inf, nan, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkdist import updaters
from sparkdist.errors import InvalidCall
from sparkdist.updaters import (
    constant,
    cosine,
    inverse_time,
    linear_scaling,
    sgd,
    step_decay,
    warmup,
)
from sparkdist.updaters._rates import rate_at

SCHEDULES = [
    constant(0.5),
    inverse_time(0.5, 0.25),
    step_decay(0.5, 0.1, 30),
    cosine(0.5, 100, 0.01),
    warmup(cosine(0.5, 100), 10, 0.1),
    linear_scaling(0.5, 4, 10),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
repeatable = settings(derandomize=True, deadline=None, max_examples=50)
rates = st.floats(1e-6, 1e3)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.5), {0: 0.5, 10**9: 0.5}),
        # 3 / (1 + t / 2)
        (inverse_time(3.0, 0.5), {0: 3.0, 1: 2.0, 2: 1.5, 4: 1.0, 10: 0.5}),
        (inverse_time(3.0, 0.0), {0: 3.0, 10**9: 3.0}),
        # Halved at 3, 6, 9 ...
        (step_decay(8.0, 0.5, 3), {0: 8.0, 2: 8.0, 3: 4.0, 5: 4.0, 6: 2.0, 9: 1.0}),
        # The cosine of 0, 60, 90, 120 and 180 degrees is 1, 1/2, 0, -1/2 and -1.
        (cosine(5.0, 12, 1.0), {0: 5.0, 4: 4.0, 6: 3.0, 8: 2.0, 12: 1.0, 13: 1.0, 999: 1.0}),
        (cosine(4.0, 12), {0: 4.0, 4: 3.0, 6: 2.0, 8: 1.0, 12: 0.0, 13: 0.0}),
        # 1/2 on the way up from 1 to 3
        (warmup(3.0, 4, 1.0), {0: 1.0, 1: 1.5, 2: 2.0, 3: 2.5, 4: 3.0, 5: 3.0}),
        (warmup(3.0, 4), {0: 0.0, 1: 0.75, 4: 3.0}),
        (warmup(3.0, 0, 1.0), {0: 3.0}),
        # Goyal et al.: 0.1 for 256 images; k = 32, so 3.2 for 8192; 5 epochs of 1,281,167 images
        # are 782 updates; half-way, (0.1 + 3.2) / 2.
        (linear_scaling(0.1, 32, 782), {0: 0.1, 391: 1.65, 782: 3.2, 783: 3.2, 10**6: 3.2}),
        (linear_scaling(0.1, 32), {0: 3.2, 1: 3.2}),
        # The square-root rule, and fewer workers than the rate was tuned for.
        (linear_scaling(0.5, 0.5, 2), {0: 0.5, 1: 0.375, 2: 0.25}),
    ],
    ids=str,
)
def test_values_by_hand(schedule, values):
    assert {t: schedule(t) for t in values} == pytest.approx(values, rel=1e-14, abs=1e-15)


@repeatable
@given(rate=rates, final=rates, t=st.integers(0, 1000), steps=st.integers(1, 1000))
def test_cosine_is_its_closed_form_until_it_ends(rate, final, t, steps):
    turn = cos(pi * min(t, steps) / steps)
    expected = (1 + turn) / 2 * rate + (1 - turn) / 2 * final
    assert cosine(rate, steps, final)(t) == pytest.approx(expected, rel=1e-12)


@repeatable
@given(rate=rates, k=st.integers(2, 64), steps=st.integers(1, 1000))
def test_the_gradual_warm_up_grows_by_the_same_amount_each_update(rate, k, steps):
    values = [linear_scaling(rate, k, steps)(t) for t in range(steps + 2)]
    growth = np.diff(values[:-1])
    np.testing.assert_allclose(growth, (k - 1) * rate / steps, rtol=1e-6)
    assert values[0] == rate
    assert values[-2:] == [k * rate, k * rate]


def test_after_a_warm_up_the_target_is_what_it_would_have_been():
    target = step_decay(3.2, 0.1, 30)
    schedule = warmup(target, 40, 0.1)
    assert [schedule(t) for t in range(40, 100)] == [target(t) for t in range(40, 100)]
    # It rises towards the rate of update 40, 0.32, which had one decay.
    assert schedule(20) == pytest.approx(0.21)


def test_schedules_nest():
    schedule = warmup(warmup(8.0, 4, 4.0), 2)
    assert [schedule(t) for t in range(6)] == [0.0, 3.0, 6.0, 7.0, 8.0, 8.0]


@every_schedule
def test_a_schedule_reads_like_its_call_pickles_and_compares(schedule):
    assert eval(repr(schedule), vars(updaters)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert sum(schedule == other for other in SCHEDULES) == 1
    assert len({schedule, pickle.loads(pickle.dumps(schedule))}) == 1


@every_schedule
@pytest.mark.parametrize("t", [0, 7, 10**12])
def test_a_rate_is_a_plain_float_also_if_t_is_not_a_plain_int(schedule, t):
    # A float64 of NumPy would make float32 parameters float64.
    assert type(rate_at(schedule, np.int64(t))) is float
    assert rate_at(schedule, np.int64(t)) == rate_at(schedule, t) == schedule(t)


def test_numbers_of_any_kind_become_plain():
    kinds = [np.float64(0.5), np.float32(0.5), Fraction(1, 2)]
    assert [repr(constant(kind)) for kind in kinds] == ["constant(rate=0.5)"] * 3
    assert repr(step_decay(1, 1, np.int32(3))) == "step_decay(rate=1.0, factor=1.0, every=3)"


POSITIVE = "must be a finite number > 0"
RATE = "must be a finite number > 0, or a function of t = 0, 1, 2 ... that gives one >= 0"


@pytest.mark.parametrize("bad", [0, -0.1, inf, nan, 10**400, True, None, "0.1", [0.1], 1j])
def test_what_is_no_rate_is_refused(bad):
    for call, name, rule in [(constant, "constant", POSITIVE), (sgd, "sgd", RATE)]:
        with pytest.raises(InvalidCall) as caught:
            call(bad)
        assert caught.value.caller == name
        assert caught.value.problems == (f"rate {rule}; it is {bad!r}",)


@pytest.mark.parametrize(
    ("call", "problems"),
    [
        (lambda: inverse_time(1.0, -1.0), ["decay must be a finite number >= 0; it is -1.0"]),
        (lambda: step_decay(1.0, 0.0, 3), ["factor must be a number > 0 and <= 1; it is 0.0"]),
        (lambda: step_decay(1.0, 1.5, 3), ["factor must be a number > 0 and <= 1; it is 1.5"]),
        (lambda: step_decay(1.0, 0.5, 0), ["every must be a whole number >= 1; it is 0"]),
        (lambda: step_decay(1.0, 0.5, 2.0), ["every must be a whole number >= 1; it is 2.0"]),
        (lambda: step_decay(1.0, 0.5, True), ["every must be a whole number >= 1; it is True"]),
        (lambda: cosine(1.0, 0), ["steps must be a whole number >= 1; it is 0"]),
        (lambda: cosine(1.0, 9, -1), ["final must be a finite number >= 0; it is -1"]),
        (lambda: warmup(1.0, -1), ["steps must be a whole number >= 0; it is -1"]),
        (lambda: warmup("1", 1, nan), [f"target {RATE}", "start must be a finite number >= 0"]),
        (lambda: linear_scaling(0, 0, "5"), ["rate must", "k must", "warmup_steps must"]),
    ],
)
def test_all_problems_of_a_call_are_told_at_once(call, problems):
    with pytest.raises(InvalidCall) as caught:
        call()
    assert len(caught.value.problems) == len(problems)
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert told.startswith(expected)


def without_argument():
    return 0.1


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (lambda t: "fast", "for t = 0 it gives 'fast'"),
        (lambda t: -1, "for t = 0 it gives -1"),
        (lambda t: inf, "for t = 0 it gives inf"),
        (lambda t: None, "for t = 0 it gives None"),
        (lambda t: 1 / t, "for t = 0 it raises ZeroDivisionError: division by zero"),
        (
            without_argument,
            "for t = 0 it raises TypeError: "
            "without_argument() takes 0 positional arguments but 1 was given",
        ),
        (cosine, f"it is {cosine!r}"),  # the class: sgd(cosine) for sgd(cosine(...))
    ],
)
def test_a_schedule_that_cannot_work_is_refused_at_the_door(schedule, end):
    with pytest.raises(InvalidCall) as caught:
        sgd(schedule)
    assert caught.value.problems == (f"rate {RATE}; {end}",)


def test_a_schedule_may_give_0_and_numbers_of_numpy():
    assert rate_at(sgd(lambda t: 0).rate, 5) == 0
    assert type(rate_at(lambda t: np.float32(0.5), 5)) is float


@pytest.mark.parametrize("later", [-1.0, nan, inf, None])
def test_a_schedule_that_goes_wrong_later_says_where(later):
    def schedule(t):
        return 0.1 if t < 3 else later

    assert rate_at(schedule, 2) == 0.1
    with pytest.raises(InvalidCall, match="^schedule: 1 problem\n  - the rate of update 3 must be"):
        rate_at(schedule, 3)
