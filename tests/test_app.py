"""The routes of the model server, through Flask's test client."""

import io
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import create_environ, run_wsgi_app
from werkzeug.wrappers import Response

from sparkdist import wire
from sparkdist.consistency import asp
from sparkdist.errors import CheckpointError, DecodeError
from sparkdist.layout import Layout
from sparkdist.server import page
from sparkdist.server.app import Settings, create_app
from sparkdist.server.checkpoint import Checkpointer
from sparkdist.server.incoming import read_body
from sparkdist.server.rules import MeanGradient
from sparkdist.server.store import Store
from sparkdist.updaters import Descent, sgd
from sparkdist.wire import CONTENT_TYPE, NOT_FINITE, decode, encode, entries_of

TOKEN = "0123456789abcdef" * 4
HOST = "127.0.0.1:4711"
MODEL = {"W": np.zeros((2, 2)), "b": np.zeros(2)}
LAYOUT = Layout.of(MODEL)
LIMIT = 6 * 8 + wire.HEADER_LIMIT + wire.PRELUDE_BYTES


class Faulty(MeanGradient):
    """Raises where the gradient begins with 13."""

    def apply(self, t, pushes, w, state, new_w, new):
        new_w[:] = 99.0  # half of an update
        if pushes[0].gradient[0] == 13.0:
            raise ZeroDivisionError("the secret of the descent")
        super().apply(t, pushes, w, state, new_w, new)


class Unread(io.BytesIO):
    """A body that says when it is read."""

    touched = False

    def read(self, *size):
        self.touched = True
        return super().read(*size)

    def readinto(self, buffer):
        self.touched = True
        return super().readinto(buffer)


class InPieces(io.BytesIO):
    """A body of which few bytes come at a time."""

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:99_991])


def serve(*, checkpointer=None, skip=False):
    """An app, its store, and a client whose headers are right."""
    rule = Faulty(Descent(sgd(1.0)), LAYOUT, "<f8")
    keeper = checkpointer or Checkpointer(None)
    store = Store(np.zeros(6), rule, asp(), keeper, skip_not_finite=skip)
    store.begin("run1", 2)
    app = create_app(store, Settings(TOKEN, frozenset({HOST}), LAYOUT, "<f8", LIMIT))
    client = app.test_client()

    def ask(method, path, body=None, *, drop=(), **changed):
        headers = {"Host": HOST, "Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        headers = {name: value for name, value in headers.items() if name not in drop}
        return client.open(path, method=method, data=body, headers=headers)

    return SimpleNamespace(store=store, app=app, client=client, ask=ask)


@pytest.fixture
def server():
    return serve()


def ask_raw(server, method, path, headers, body):
    """Ask past the test client, which corrects the Content-Length and reads what is left."""
    environ = create_environ(path, method=method, headers=headers)
    environ["wsgi.input"] = body
    if "Content-Length" in headers:
        environ["CONTENT_LENGTH"] = headers["Content-Length"]
    return Response(*run_wsgi_app(server.app, environ))


def ask_unread(server, method, path, headers):
    """Ask with a body that must not be read."""
    body = Unread()
    response = ask_raw(server, method, path, headers, body)
    assert not body.touched
    return response


def push_of(value=1.0, clock=0, *, run="run1", partition=0, arrays=None, server=None, **more):
    """A push whose gradient is everywhere the same."""
    if arrays is None:
        arrays = {"W": np.full((2, 2), value), "b": np.full(2, value)}
    generation = server.store.generation if server else "g"
    fields = {"run": run, "partition": partition, "clock": clock, "base": 0}
    fields |= {"generation": generation, "weight": 1.0} | more
    return encode(fields, entries_of(arrays), arrays.values())


def call(**fields):
    """The body of a join, a pull or a leave."""
    return encode({"run": "run1", "partition": 0} | fields)


def state_of(server):
    """Everything that a request may change, but the time."""
    status = server.store.status()
    for worker in status["workers"]:
        del worker["seconds_ago"]
    return status, server.store.parameters()[1].tolist(), server.store.fault


def error_of(response):
    assert response.content_type == "application/json"
    assert set(response.json) == {"error", "message"}
    return response.json["error"]


def routes_of(app):
    """Every (method, path) that the app knows, and OPTIONS, which it must not."""
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods | {"OPTIONS"}):
            yield method, rule.rule


ROUTES = sorted(routes_of(serve().app))
ANSWERED = [(method, path) for method, path in ROUTES if method != "OPTIONS"]
BODIES = [(method, path) for method, path in ANSWERED if method == "POST"]
every_route = pytest.mark.parametrize(("method", "path"), ROUTES)
every_body = pytest.mark.parametrize(("method", "path"), BODIES)


def good_body(path):
    return push_of() if path == "/v1/push" else call()


# --- who is let in --------------------------------------------------------------------------


def test_the_routes_are_those_that_are_documented():
    looks = ["/healthz", "/readyz", "/metrics", "/v1/status", "/v1/model"]
    looks += ["/", "/page.css", "/page.js", "/icon.svg"]
    assert ANSWERED == sorted(
        [(method, path) for method in ("GET", "HEAD") for path in looks]
        + [("POST", f"/v1/{name}") for name in ("join", "pull", "push", "leave")]
    )


@pytest.mark.parametrize(("method", "path"), ANSWERED)
def test_every_route_answers_whoever_has_the_token(server, method, path):
    body = good_body(path) if method == "POST" else None
    response = server.ask(method, path, body)
    assert response.status_code == 200
    assert "Set-Cookie" not in response.headers
    assert not [name for name in response.headers.keys() if name.startswith("Access-Control")]


WRONG_TOKENS = [
    *(None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"bearer {TOKEN}"),
    *(f"Bearer {'f' * 64}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0", f"Bearer {TOKEN.upper()}"),
    *(f"Bearer {TOKEN}, Bearer {TOKEN}", f"Bearer {TOKEN}\xe9"),
]


def with_wrong_tokens(path):
    """Pairs of a path and headers."""
    headers = {"Host": HOST, "Content-Type": CONTENT_TYPE, "Content-Length": "100"}
    for given in WRONG_TOKENS:
        yield path, headers | ({} if given is None else {"Authorization": given})
    yield path, headers | {"Cookie": f"token={TOKEN}; Authorization=Bearer {TOKEN}"}
    yield f"{path}?token={TOKEN}&Authorization=Bearer%20{TOKEN}", headers


@every_route
def test_r37_every_route_but_healthz_needs_the_token(server, method, path):
    before = state_of(server)
    is_open = path in {"/healthz"} | page.OPEN and method in ("GET", "HEAD")
    for asked, headers in with_wrong_tokens(path):
        response = ask_unread(server, method, asked, headers)
        assert response.status_code == (200 if is_open else 401)
        assert TOKEN.encode() not in response.data and TOKEN not in str(response.headers)
    assert state_of(server) == before


@pytest.mark.parametrize(
    "path", ["/page", "/console", "/v1/push/", "//v1/status", "/static/a", "/v2"]
)
def test_r37_paths_that_are_not_there_are_not_told_without_the_token(server, path):
    assert server.ask("GET", path, drop=["Authorization"]).status_code == 401
    assert server.ask("GET", path).status_code in (308, 404)


def test_r39_the_settings_do_not_show_the_token():
    settings = Settings(TOKEN, frozenset({HOST}), LAYOUT, "<f8", LIMIT)
    assert TOKEN not in repr(settings) + str(settings)


@every_route
def test_r40_a_web_page_cannot_ask(server, method, path):
    before = state_of(server)
    body = good_body(path) if method == "POST" else None
    for host in ("evil.example", "evil.example:4711", "127.0.0.1", "localhost:4711", HOST + ".e"):
        assert server.ask(method, path, body, Host=host).status_code == 400
    for origin in ("https://evil.example", f"http://{HOST}", "null", ""):
        assert server.ask(method, path, body, Origin=origin).status_code == 403
    assert state_of(server) == before


@every_body
def test_r40_only_frames_are_read(server, method, path):
    before = state_of(server)
    for kind in (
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"),
        *("application/json", "application/octet-stream", "application/python-pickle", ""),
    ):
        response = server.ask(method, path, good_body(path), Content_Type=kind)
        assert (response.status_code, error_of(response)) == (415, "type")
    assert state_of(server) == before


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_r40_other_methods_and_preflights_are_refused(server, path):
    for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        response = server.ask(method, path, Access_Control_Request_Method="POST")
        assert (response.status_code, error_of(response)) == (405, "http")


# --- bodies ---------------------------------------------------------------------------------


def post_unread(server, path, **headers):
    right = {"Host": HOST, "Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
    right |= {name.replace("_", "-"): value for name, value in headers.items()}
    return ask_unread(server, "POST", path, right)


@every_body
def test_r24_a_body_over_the_limit_is_refused_before_it_is_read(server, method, path):
    limit = LIMIT if path == "/v1/push" else LIMIT - 48
    for length in (limit + 1, 2 << 30, 10**30):
        response = post_unread(server, path, Content_Length=str(length))
        assert (response.status_code, error_of(response)) == (413, "too_large")


def test_r24_a_body_at_the_limit_is_read(server):
    response = server.ask("POST", "/v1/push", bytes(LIMIT))
    assert (response.status_code, error_of(response)) == (400, "frame")


@every_body
def test_a_body_must_say_how_long_it_is(server, method, path):
    for headers in (
        {},
        {"Transfer_Encoding": "chunked"},
        {"Transfer_Encoding": "chunked", "Content_Length": "5"},
    ):
        response = post_unread(server, path, **headers)
        assert (response.status_code, error_of(response)) == (411, "length")


@pytest.mark.parametrize("n", [1, 99_991, 99_992, 700_001])
def test_r20_a_body_comes_whole_however_few_of_its_bytes_come_at_a_time(n):
    body = np.random.default_rng(0).bytes(n)
    environ = {"CONTENT_TYPE": CONTENT_TYPE, "wsgi.input": InPieces(body)}
    assert bytes(read_body(environ | {"CONTENT_LENGTH": str(n)}, n)) == body
    environ = {"CONTENT_TYPE": CONTENT_TYPE, "wsgi.input": InPieces(body[1:])}
    with pytest.raises(DecodeError, match=f"{n - 1} of {n} bytes"):
        read_body(environ | {"CONTENT_LENGTH": str(n)}, n)


@every_body
@pytest.mark.parametrize("length", ["five", "", "-5", "+5", "5, 5", "0x5", "1_0", "0"])
def test_a_length_that_is_none_is_refused_and_nothing_is_taken(server, method, path, length):
    headers = {"Host": HOST, "Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
    body = io.BytesIO(good_body(path))
    response = ask_raw(server, method, path, headers | {"Content-Length": length}, body)
    assert (response.status_code, error_of(response)) == (400, "frame")
    assert body.tell() == 0


@every_body
def test_r24_a_compressed_body_is_refused_before_it_is_read(server, method, path):
    for encoding in ("gzip", "deflate", "br", "identity", ""):
        response = post_unread(server, path, Content_Length="5", Content_Encoding=encoding)
        assert (response.status_code, error_of(response)) == (415, "encoding")


@every_body
def test_r20_a_body_that_was_cut_changes_nothing(server, method, path):
    body, before = good_body(path), state_of(server)
    headers = {"Host": HOST, "Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
    for length in range(0, len(body), 7):
        for said in (length, len(body)):  # with a Content-Length that fits, and without
            said_so = headers | {"Content-Length": str(said)}
            response = ask_raw(server, method, path, said_so, io.BytesIO(body[:length]))
            assert (response.status_code, error_of(response)) == (400, "frame")
    assert state_of(server) == before


CALL = """
import io, sys
found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)
from tests.test_app import BODIES, serve
server = serve()
bodies = [open(path, "rb").read() for path in sys.argv[1:]]
del found[:]  # what the imports did
for method, path in BODIES:
    for body in bodies:
        response = server.ask(method, path, body)
        assert response.status_code == 400, response.status_code
        for kind in ("application/python-pickle", "application/octet-stream"):
            assert server.ask(method, path, body, Content_Type=kind).status_code == 415
assert not found, found
import pickle, fractions
pickle.loads(pickle.dumps(fractions.Fraction(1)))
assert found, "the hook sees nothing"
"""


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_r41_nothing_that_comes_is_unpickled(tmp_path):
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    saved, zipped = io.BytesIO(), io.BytesIO()
    np.save(saved, np.array([Bomb(marker)], object), allow_pickle=True)
    np.savez(zipped, w=np.array([Bomb(marker)], object))
    bodies = [bomb, pickle.dumps(Bomb(marker), 0), saved.getvalue(), zipped.getvalue()]
    bodies.append(encode({"run": "run1", "partition": 0}, [], [bomb]))
    paths = [tmp_path / str(i) for i in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-c", CALL, *map(str, paths)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    pickle.loads(bomb)
    assert marker.exists()  # the bomb is one


BAD_IDS = [
    *("..", "../run1", "%2e%2e", "/etc/passwd", "a/b", "a\\b", "run1\0", "\0", "run1\n", "a b"),
    *("file:///etc/passwd", "http://a", "run#1", "", "a" * 65, "r\u00fcn", "run\u0661", "\ud800"),
    *(None, 1, True, 1.5),
]


@every_body
def test_r43_a_run_names_no_file(server, method, path):
    before = state_of(server)
    for bad in BAD_IDS:
        body = push_of(run=bad) if path == "/v1/push" else call(run=bad)
        response = server.ask(method, path, body)
        assert (response.status_code, error_of(response)) == (400, "frame")
        assert response.json["message"] == "run must be 1 to 64 of A-Z a-z 0-9 _ -"
    assert state_of(server) == before


def test_r43_a_generation_names_no_file(server):
    before = state_of(server)
    for bad in BAD_IDS:
        response = server.ask("POST", "/v1/push", push_of(generation=bad))
        assert (response.status_code, error_of(response)) == (400, "frame")
    assert state_of(server) == before


@pytest.mark.parametrize("name", ["partition", "clock", "base", "examples"])
@pytest.mark.parametrize("bad", [-1, 1.0, True, "1", 2**53, 10**400], ids=lambda bad: f"{bad!r:.9}")
def test_r21_counts_are_integers_from_0(server, name, bad):
    before = state_of(server)
    response = server.ask("POST", "/v1/push", push_of(**{name: bad}))
    assert (response.status_code, error_of(response)) == (400, "frame")
    assert response.json["message"].startswith(name)
    assert state_of(server) == before


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, bad) for name in ("weight", "loss", "wait") for bad in ("1", True, 2e300, 10**400)]
    + [("weight", None), ("weight", -1.0), ("weight", -1e-300), ("wait", None)],
    ids=lambda value: f"{value!r:.9}",
)
def test_r21_numbers_are_finite_and_weights_not_negative(server, name, bad):
    before = state_of(server)
    response = server.ask("POST", "/v1/push", push_of(**{name: bad}))
    assert (response.status_code, error_of(response)) == (400, "frame")
    assert response.json["message"].startswith(name)
    assert state_of(server) == before


@pytest.mark.parametrize("name", ["run", "partition", "clock", "base", "generation"])
def test_r21_what_a_push_must_say_has_no_default(server, name):
    message = decode(push_of())
    fields = {key: value for key, value in message.fields.items() if key != name}
    body = encode(fields, message.entries, [message.payload])
    assert server.ask("POST", "/v1/push", body).status_code == 400
    assert state_of(server) == state_of(serve_like(server))


def serve_like(server):
    """A server to which nothing was sent, of the same generation."""
    other = serve()
    other.store.generation = server.store.generation
    return other


@pytest.mark.parametrize("name", ["join", "pull", "leave"])
def test_r19_arrays_are_refused_where_none_are_expected(server, name):
    response = server.ask("POST", f"/v1/{name}", push_of())
    assert (response.status_code, error_of(response)) == (400, "frame")


# --- what the routes do ---------------------------------------------------------------------


def test_a_push_goes_through_and_the_model_comes_back(server):
    join = decode(server.ask("POST", "/v1/join", call()).data).fields
    assert (join["status"], join["next"], join["version"]) == ("ok", 0, 0)
    pushed = server.ask("POST", "/v1/push", push_of(2.0, server=server, weight=4.0, want=True))
    answer = decode(pushed.data)
    assert pushed.content_type == CONTENT_TYPE and pushed.status_code == 200
    assert (answer.fields["status"], answer.fields["next"], answer.fields["version"]) == (
        "ok",
        1,
        1,
    )
    pulled = decode(server.ask("POST", "/v1/pull", call()).data)
    model = decode(server.ask("GET", "/v1/model").data)
    for message in (answer, pulled, model):
        assert_array_equal(message.arrays()["W"], np.full((2, 2), -0.5))
        assert_array_equal(message.arrays()["b"], [-0.5, -0.5])
    assert model.fields == {"version": 1}
    assert server.ask("POST", "/v1/leave", call()).status_code == 200
    assert server.ask("GET", "/v1/status").json["workers"][0]["left"]


def test_r1_a_push_that_is_repeated_counts_once(server):
    bodies = [push_of(1.0, server=server)] * 3
    statuses = [decode(server.ask("POST", "/v1/push", b).data).fields["status"] for b in bodies]
    assert statuses == ["ok", "duplicate", "duplicate"]
    assert_array_equal(server.store.parameters()[1], -np.ones(6))


def test_r6_work_of_another_run_is_refused(server):
    before = state_of(server)
    not_finite = push_of(np.nan, run="run0")
    misfit = push_of(run="run0", arrays={"W": np.ones((2, 2))})
    for body in (
        push_of(run="run0"),
        push_of(run="Run1"),
        push_of(run="run10"),
        not_finite,
        misfit,
    ):
        response = server.ask("POST", "/v1/push", body)
        assert (response.status_code, error_of(response)) == (409, "run")
    for name in ("join", "pull", "leave"):
        assert server.ask("POST", f"/v1/{name}", call(run="run0")).status_code == 409
    assert state_of(server) == before


def test_r6_a_run_that_is_over_is_refused(server):
    server.store.begin("run2", 2)
    assert server.ask("POST", "/v1/push", push_of(server=server)).status_code == 409
    assert server.ask("POST", "/v1/push", push_of(run="run2", server=server)).status_code == 200


def test_r21_a_push_that_does_not_fit_is_told_by_partition_and_array(server):
    arrays = {"W": np.ones((2, 2)), "b": np.ones(3)}
    response = server.ask("POST", "/v1/push", push_of(partition=1, clock=0, arrays=arrays))
    assert (response.status_code, error_of(response)) == (422, "gradient")
    assert response.json["message"].startswith(
        "partition 1, push 0: array 'b' is <f8 of shape (3,)"
    )
    assert server.store.version == 0
    assert server.store.status()["counts"] == {"received": 1, "rejected_misfit": 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_r22_what_is_not_finite_never_enters_the_model(server, bad):
    response = server.ask("POST", "/v1/push", push_of(bad))
    assert (response.status_code, error_of(response)) == (422, "gradient")
    assert "array 'W'" in response.json["message"]
    assert server.store.version == 0 and not server.store.parameters()[1].any()


def test_r22_a_loss_that_is_not_finite_is_refused_as_its_gradient_would_be(server):
    """squared, far off: r^2 overflows, and r, the gradient, does not."""
    response = server.ask("POST", "/v1/push", push_of(1.0, loss=NOT_FINITE))
    assert (response.status_code, error_of(response)) == (422, "gradient")
    message = response.json["message"]
    assert message.startswith(
        "partition 0, push 0: the loss is NaN or infinite; if it has diverged"
    )
    assert server.store.version == 0
    assert server.store.status()["counts"] == {"received": 1, "rejected_not_finite": 1}


@pytest.mark.parametrize("bad", ["nan", 2e300, -2e300, True])
def test_a_loss_that_is_no_number_is_no_push(server, bad):
    response = server.ask("POST", "/v1/push", push_of(1.0, loss=bad))
    assert (response.status_code, error_of(response)) == (400, "frame")
    assert server.store.status()["counts"] == {}


def test_r22_an_overflow_and_a_weight_of_zero_never_enter_the_model(server):
    huge = push_of(1.7e308, weight=1e-3, server=server)
    for body in (huge, push_of(weight=0, server=server)):
        assert server.ask("POST", "/v1/push", body).status_code == 422
    assert server.store.version == 0 and not server.store.parameters()[1].any()
    assert server.store.status()["counts"] == {"received": 2, "rejected_not_finite": 2}


def test_a_batch_whose_rows_all_weigh_0_is_done_and_changes_nothing(server):
    assert server.ask("POST", "/v1/push", push_of(0.0, weight=0, server=server)).status_code == 200
    assert server.store.status()["counts"] == {"received": 1, "applied": 1}
    assert not server.store.parameters()[1].any()


def test_a_push_on_parameters_that_were_never_served_is_refused(server):
    answer = server.ask("POST", "/v1/push", push_of(base=1, server=server))
    assert (answer.status_code, error_of(answer)) == (400, "frame")
    assert server.store.version == 0


@pytest.mark.parametrize("path", ["/v1/join", "/v1/pull", "/v1/push", "/v1/leave"])
def test_partitions_that_the_run_does_not_have_are_refused(server, path):
    partition = server.store.ledger.n_workers
    body = push_of(partition=partition, server=server)
    if path != "/v1/push":
        body = call(partition=partition)
    answer = server.ask("POST", path, body)
    assert (answer.status_code, error_of(answer)) == (400, "frame")
    assert server.store.ledger.next == {} and server.store.ledger.gone == set()


def test_r35_bodies_beyond_what_memory_is_for_are_told_to_come_back(monkeypatch):
    monkeypatch.setattr("sparkdist.server.app._IN_MEMORY", 0)
    monkeypatch.setattr("sparkdist.server.app._BODIES", 0)
    server = serve()
    answer = server.ask("POST", "/v1/push", push_of(server=server))
    assert (answer.status_code, error_of(answer)) == (503, "busy")
    assert answer.headers["Retry-After"] == "1"
    assert server.store.status()["counts"] == {}


def test_r35_the_room_of_a_body_is_given_back_whatever_becomes_of_it(monkeypatch):
    monkeypatch.setattr("sparkdist.server.app._IN_MEMORY", 0)
    monkeypatch.setattr("sparkdist.server.app._BODIES", 1)  # room for the longest body, once
    server = serve()
    huge = b"no frame".ljust(LIMIT, b".")
    for body in [push_of(np.nan, server=server), huge] * 10:
        assert server.ask("POST", "/v1/push", body).status_code in (400, 422)


@pytest.mark.parametrize("bad", [{"value": np.nan}, {"loss": NOT_FINITE}], ids=str)
def test_r22_what_is_not_finite_is_skipped_on_request(bad):
    server = serve(skip=True)
    response = server.ask("POST", "/v1/push", push_of(server=server, **bad))
    fields = decode(response.data).fields
    assert (response.status_code, fields["status"], fields["next"]) == (200, "skipped", 1)
    assert not server.store.parameters()[1].any()


def test_r25_r44_an_exception_changes_nothing_and_tells_an_id_only(server, caplog):
    values = [1.0, 2.0, 13.0, 4.0]
    clock = 0
    for value in values:
        with caplog.at_level(logging.CRITICAL):
            response = server.ask("POST", "/v1/push", push_of(value, clock, server=server))
        if value != 13.0:
            assert response.status_code == 200
            clock += 1
            continue
        assert (response.status_code, error_of(response)) == (500, "fault")
        said = response.get_data(as_text=True)
        assert not [word for word in ("Traceback", "secret", "Zero", ".py", "File") if word in said]
        mark = response.json["message"].rpartition(" ")[2]
        assert mark in server.store.fault and "the secret of the descent" in server.store.fault
        assert server.ask("GET", "/v1/model").status_code == 200
        assert_array_equal(server.store.parameters()[1], np.full(6, -3.0))
    assert_array_equal(server.store.parameters()[1], np.full(6, -7.0))
    assert server.store.status()["counts"] == {"received": 4, "applied": 3, "rejected_failed": 1}


def test_r44_no_debugger_and_no_banner(server):
    assert not server.app.debug and not server.app.testing
    assert server.ask("GET", "/console").status_code == 404
    asked = "?__debugger__=yes&cmd=resource&f=debugger.js"
    response = server.ask("GET", f"/v1{asked}")
    assert response.status_code == 404 and b"html" not in response.data
    assert server.ask("GET", f"/{asked}").data == server.ask("GET", "/").data
    assert "Werkzeug" not in str(response.headers)


def test_r13_a_push_that_cannot_be_made_durable_is_told(server):
    class Full(Checkpointer):
        every_update = True

        def after_update(self, version, snapshot):
            raise CheckpointError("no checkpoint can be written to /data: no space left")

    server = serve(checkpointer=Full(None))
    response = server.ask("POST", "/v1/push", push_of(server=server))
    assert (response.status_code, error_of(response)) == (507, "checkpoint")
    assert not server.store.parameters()[1].any()


# --- being able to tell ---------------------------------------------------------------------


def test_r50_the_books_balance(server):
    frames = [
        *[push_of(1.0, 0, server=server)] * 2,  # applied, duplicate
        push_of(5.0, 0, server=server),  # other bytes
        push_of(1.0, 9, server=server),  # ahead
        push_of(1.0, 1, generation="other", base=5),  # stale
        push_of(np.nan, 1, server=server),
        push_of(1.0, 1, server=server, arrays={"W": np.ones(3)}),
        push_of(13.0, 1, server=server),  # the rule raises
        push_of(2.0, 1, server=server, base=1, examples=7, loss=0.5),
        push_of(3.0, 0, server=server, partition=1),
    ]
    noise = [b"", b"abc", frames[0][:-1], push_of(run="run0"), push_of(weight="1")]
    logging.disable(logging.ERROR)
    try:
        for body in [*frames, *noise]:
            server.ask("POST", "/v1/push", body)
            assert server.store.ledger.balanced
    finally:
        logging.disable(logging.NOTSET)
    counts = server.ask("GET", "/v1/status").json["counts"]
    assert counts == {
        **{"received": 10, "applied": 3, "duplicate": 1, "duplicate_other_bytes": 1, "ahead": 1},
        **{"stale": 1, "rejected_not_finite": 1, "rejected_misfit": 1, "rejected_failed": 1},
    }
    assert counts.pop("received") == sum(counts.values())
    families = text_string_to_metric_families(server.ask("GET", "/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    assert counts == {s.labels["fate"]: s.value for s in samples if "fate" in s.labels}
    alone = {sample.name: sample.value for sample in samples if not sample.labels}
    assert alone["sparkdist_pushes_received_total"] == 10
    assert (alone["sparkdist_version"], alone["sparkdist_examples"]) == (3, 7)
    ages = {s.labels["versions"]: s.value for s in samples if "versions" in s.labels}
    assert ages == {"0": 2, "2": 1}


def test_r50_the_books_balance_while_many_push(server):
    def work(partition):
        for clock in range(20):
            body = push_of(1.0, clock, partition=partition, server=server)
            for _ in range(2):
                assert server.ask("POST", "/v1/push", body).status_code == 200

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.store.status()["counts"] == {"received": 80, "applied": 40, "duplicate": 40}
    assert_array_equal(server.store.parameters()[1], np.full(6, -40.0))


def test_r52_health_is_honest(server):
    def codes():
        return [server.ask("GET", path).status_code for path in ("/healthz", "/readyz")]

    assert codes() == [200, 200]
    server.store.drain()
    assert codes() == [200, 503]
    assert server.ask("GET", "/readyz").json == {"ready": False}


def test_r52_a_disk_that_fails_is_told_by_readyz():
    class Failing(Checkpointer):
        healthy = False

    server = serve(checkpointer=Failing(None))
    assert server.ask("GET", "/healthz").status_code == 200
    assert server.ask("GET", "/readyz").status_code == 503
