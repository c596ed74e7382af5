"""R54: the tests can fail.  Each defect is put into the code, and the test named for it sees it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pytest

from sparkdist.consistency import asp, bsp
from sparkdist.server import checkpoint, incoming, rules
from sparkdist.server.leases import Leases
from sparkdist.server.ledger import Ledger
from sparkdist.server.parameters import Parameters
from sparkdist.server.store import Store

# As modules: a test that is imported by name would be collected here once more.
from tests import test_app, test_checkpoint, test_leases, test_store

pytestmark = pytest.mark.long

Killer = Callable[[Path, pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """A defect: in the source of ``function``, ``old`` is replaced by ``new``."""

    name: str
    function: FunctionType
    old: str
    new: str
    killer: Killer
    # What a failed test raises: an assertion, and pytest.raises that saw nothing.
    seen: tuple[type[BaseException], ...] = (AssertionError, pytest.fail.Exception)

    def put_in(self, patch: pytest.MonkeyPatch) -> None:
        """Change the function's code: it is changed under every name that it was imported by."""
        source = textwrap.dedent(inspect.getsource(self.function))
        assert source.count(self.old) == 1, "the mutant does not fit the code any more"
        found: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), self.function.__globals__, found)
        patch.setitem(self.function.__globals__, "Unlocked", Unlocked)
        patch.setattr(self.function, "__code__", found[self.function.__name__].__code__)


class Unlocked:
    """A lock that lets everybody in."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None

    def _is_owned(self) -> bool:
        return True

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *error: object) -> None:
        return None


def without_files(test: Callable[..., None], *arguments: Any) -> Killer:
    return lambda folder, patch: test(*arguments)


def on_a_server(test: Callable[..., None], *arguments: Any) -> Killer:
    return lambda folder, patch: test(test_app.serve(), *arguments)


def in_a_folder(test: Callable[..., None], **arguments: Any) -> Killer:
    return lambda folder, patch: test(folder, **arguments)


def crash_at(k: int) -> Killer:
    test = test_checkpoint.test_r12_a_crash_at_any_step_leaves_the_old_one_or_the_new_one
    return lambda folder, patch: test(folder, patch, k, False)


MUTANTS = [
    Mutant(
        "leases that do not end",
        Leases.over,
        "self._clock() >= self.end",
        "False",
        without_files(
            test_leases.test_h6_a_dead_worker_is_waited_for_until_its_lease_is_over_and_no_longer
        ),
    ),
    Mutant(
        "no place for who comes back",
        Ledger.hear,
        "if partition in self.away:",
        "if False:",
        without_files(
            test_leases.test_h6_who_comes_back_has_its_place_again_and_every_push_counts_once,
            "push",
        ),
    ),
    Mutant(
        "no duplicate table",
        Ledger.judge,
        "if clock == expected:",
        "if clock <= expected:",
        without_files(test_store.test_r1_a_push_that_is_repeated_counts_once),
    ),
    Mutant(
        "no look at pushes that are missing",
        Ledger.judge,
        "if clock > expected:",
        "if False:",
        in_a_folder(test_store.test_r15_a_worker_that_is_ahead_of_a_restored_server_goes_back),
    ),
    Mutant(
        "no look at the bytes of a duplicate",
        Ledger.judge,
        "digest != last.digest",
        "False",
        without_files(
            test_store.test_r8_other_bytes_under_the_same_name_change_nothing_and_are_told,
            bsp(),
            "conflict",
        ),
    ),
    Mutant(
        "no fsync of the file",
        checkpoint.write,
        "os.fsync(file.fileno())",
        "pass",
        crash_at(1),
    ),
    Mutant(
        "no fsync of the folder",
        checkpoint._sync_folder,
        "os.fsync(descriptor)",
        "pass",
        crash_at(3),
    ),
    Mutant(
        "the file is written in place",
        checkpoint.write,
        'draft = folder / "checkpoint.draft"',
        "draft = path",
        crash_at(1),
    ),
    Mutant(
        "no checksum of a checkpoint",
        checkpoint.read,
        "or hashlib.sha256(body).digest() != digest",
        "",
        in_a_folder(test_checkpoint.test_r14_no_damage_is_loaded_silently),
    ),
    Mutant(
        "the ledger is not in the snapshot",
        Store._snapshot,
        "self.ledger.without(self._round)",
        "Ledger(self.ledger.run, self.ledger.n_workers)",
        in_a_folder(
            test_checkpoint.test_r11_a_restart_neither_doubles_nor_loses_a_push, every_update=True
        ),
    ),
    Mutant(
        "the open round is in the snapshot",
        Store._snapshot,
        "self.ledger.without(self._round)",
        "self.ledger",
        in_a_folder(test_checkpoint.test_r11_a_snapshot_never_holds_an_open_round, last="save"),
    ),
    Mutant(
        "a push is acknowledged before it is durable",
        Store._apply,
        "self._parameters.swap(-1)",
        "return 'ok'",
        lambda folder, patch: (
            test_checkpoint.test_r13_every_update_a_push_that_cannot_be_durable_is_not_applied(
                folder, patch, asp(), "fsync"
            )
        ),
    ),
    Mutant(
        "no generation check",
        Store._book,
        "push.generation != self.generation and",
        "False and",
        in_a_folder(test_store.test_r15_a_push_computed_on_parameters_that_were_lost_is_stale),
    ),
    Mutant(
        "no check of the run",
        Ledger.refuse_stale,
        "run != self.run",
        "False",
        on_a_server(test_app.test_r6_work_of_another_run_is_refused),
    ),
    Mutant(
        "no finite check of a push",
        rules._refuse_not_finite,
        "if all_finite(values):",
        "if True:",
        on_a_server(test_app.test_r22_what_is_not_finite_never_enters_the_model, np.nan),
    ),
    Mutant(
        "no finite check of an update",
        Parameters.prepare,
        "not all(map(all_finite, (self._new_w, *self._new_state)))",
        "False",
        without_files(test_store.test_r22_an_update_that_overflows_is_refused, asp()),
    ),
    Mutant(
        "lock removed, seen by a writer",
        Store.__init__,
        "threading.Condition()",
        "threading.Condition(Unlocked())",
        without_files(
            test_store.test_r9_versions_are_1_to_n_and_a_replay_in_their_order_is_bitwise_the_same
        ),
        seen=(AssertionError, KeyError),  # two writers at a time may break the ledger itself
    ),
    Mutant(
        "lock removed, seen by a reader",
        Store.__init__,
        "threading.Condition()",
        "threading.Condition(Unlocked())",
        without_files(test_store.test_r30_a_reader_never_sees_half_an_update),
    ),
    Mutant(
        "token compare off",
        incoming.refuse_wrong_token,
        "if not any([hmac.compare_digest(",
        "if False and any([hmac.compare_digest(",
        on_a_server(test_app.test_r37_every_route_but_healthz_needs_the_token, "POST", "/v1/push"),
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_r54_a_defect_is_seen_by_the_test_named_for_it(mutant, tmp_path):
    for folder in ("whole", "defect"):
        (tmp_path / folder).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        mutant.killer(tmp_path / "whole", patch)
    with pytest.MonkeyPatch.context() as patch:
        mutant.put_in(patch)
        with pytest.raises(mutant.seen):
            mutant.killer(tmp_path / "defect", patch)


def test_r54_a_mutant_that_changes_nothing_any_more_is_seen():
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="does not fit"):
        MUTANTS[0]._replace(old="if this line were not there:").put_in(patch)
