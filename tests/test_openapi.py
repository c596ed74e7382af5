"""The contract of the model server, server/openapi.json, against what the routes really do."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from sparkdist.consistency import backup, bsp
from sparkdist.errors import CheckpointError
from sparkdist.server import app, page
from sparkdist.server.checkpoint import Checkpointer
from sparkdist.server.rules import MeanGradient
from sparkdist.updaters import Descent, sgd
from sparkdist.wire import CONTENT_TYPE, PRELUDE_BYTES, Sparse, decode, encode, entries_of

# As a module: a test that is imported by name would be collected here once more.
from tests import test_app
from tests.test_app import call, push_of, serve

FILE = files("sparkdist.server") / "openapi.json"
API: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
VERBS = ("get", "head", "post", "put", "delete", "options", "patch", "trace")
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (verb.upper(), path): item[verb]
    for path, item in API["paths"].items()
    for verb in VERBS
    if verb in item
}
#: Media types whose schema is that of a frame's header.
HEADER = "x-frame-header"


def resolve(found: Any) -> Any:
    """Follow references within the file."""
    while "$ref" in found:
        start, *names = found["$ref"].split("/")
        assert start == "#"
        found = functools.reduce(lambda place, name: place[name], names, API)
    return found


def validator(schema: Any) -> Draft202012Validator:
    """A validator that knows the schemas of the file."""
    return Draft202012Validator({"components": API["components"], "allOf": [schema]})


def header_of(frame: bytes) -> Any:
    """The JSON in a frame, by its prelude: length of the header at byte 8."""
    length = int.from_bytes(frame[8:12], "little")
    return json.loads(frame[PRELUDE_BYTES : PRELUDE_BYTES + length])


def problems_of(content: dict[str, Any], mimetype: str, body: bytes) -> list[str]:
    """Say what is wrong with a body of one of the types that are described."""
    if mimetype not in content:
        return [f"{mimetype} is not described; {sorted(content)} are"]
    media = content[mimetype]
    if HEADER in media:
        decode(body)
        found, schema = header_of(body), media[HEADER]
    else:
        found = json.loads(body) if mimetype == "application/json" else body.decode()
        schema = media["schema"]
    return [error.message for error in validator(schema).iter_errors(found)]


# --- the requests -----------------------------------------------------------------------------


class Exchange(NamedTuple):
    """A request and its answer; no body where the one that was sent is no frame."""

    name: str
    method: str
    path: str
    body: bytes | None
    answer: Any


class Full(Checkpointer):
    """A disk without room."""

    every_update = True

    def after_update(self, version: int, snapshot: Callable[[], Any]) -> NoReturn:
        raise CheckpointError("no checkpoint can be written: no space left")


class Failing(Checkpointer):
    """A disk that has failed too often."""

    healthy = False


def fail(*arguments: Any, **options: Any) -> NoReturn:
    raise ZeroDivisionError("a fault of the server")


def under(policy: Any, **options: Any) -> SimpleNamespace:
    server = serve(**options)
    server.store.consistency = policy
    return server


def plain() -> SimpleNamespace:
    """A server without the rule that raises, which knows dense gradients only."""
    server = serve()
    server.store.use(MeanGradient(Descent(sgd(1.0)), test_app.LAYOUT, "<f8"))
    return server


def busy() -> SimpleNamespace:
    """A server that has no room for a body."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "_IN_MEMORY", 0)
        patch.setattr(app, "_BODIES", 0)
        return serve()


def draining() -> SimpleNamespace:
    server = serve()
    server.store.drain()
    return server


def broken() -> SimpleNamespace:
    """A server that fails whatever it is asked."""
    server = serve()
    for name in ("status", "parameters", "join", "pull", "push", "leave"):
        setattr(server.store, name, fail)
    return server


class Case(NamedTuple):
    """A server, and what it is asked in turn: paths, and bodies of those that take one."""

    name: str
    make: Callable[[], SimpleNamespace]
    steps: list[tuple[str, Callable[[SimpleNamespace], bytes] | None]]


def good_calls() -> Iterator[Case]:
    """Requests that are answered as they hope, and those of rounds."""
    calls = [
        ("/v1/join", lambda server: call()),
        ("/v1/pull", lambda server: call(wait=0.5)),
        ("/v1/push", lambda server: push_of(server=server, want=True, examples=7, loss=0.5)),
        ("/v1/push", lambda server: push_of(server=server)),
        ("/v1/push", lambda server: push_of(2.0, 1, server=server, base=1, loss=None)),
        ("/v1/leave", lambda server: call()),
    ]
    looks = [(path, None) for path in ("/readyz", "/metrics", "/v1/status", "/v1/model")]
    yield Case("life", serve, [*calls, *looks])
    yield Case("sparse", plain, [("/v1/push", lambda server: sparse_push())])
    yield Case("skip", lambda: serve(skip=True), [("/v1/push", lambda server: push_of(np.nan))])
    first, second = (functools.partial(push_of, partition=i) for i in (0, 1))
    rounds = [
        ("/v1/push", lambda server: first(server=server, want=True)),
        ("/v1/status", None),
        ("/v1/pull", lambda server: call()),  # waits for the other worker
        ("/v1/push", lambda server: first(5.0, server=server)),  # conflict
    ]
    yield Case("round", lambda: under(bsp()), rounds)
    late = [("/v1/push", lambda server, one=one: one(server=server)) for one in (first, second)]
    yield Case("backup", lambda: under(backup(1)), late)


def sparse_push() -> bytes:
    values, indices = np.ones(1), np.array([1], "<i4")
    arrays = {"W": Sparse(values, indices, (2, 2)), "b": Sparse(values, indices, (2,))}
    return encode(decode(push_of()).fields, entries_of(arrays), [values, indices] * 2)


def refused_pushes() -> Iterator[Case]:
    """Pushes that are whole frames, and are not counted."""

    def one(body: bytes) -> Any:
        return [("/v1/push", lambda server: body)]

    yield Case("ahead", serve, one(push_of(clock=9)))
    yield Case("stale", serve, one(push_of(generation="other", base=5)))
    yield Case("misfit", serve, one(push_of(arrays={"W": np.ones(3)})))
    yield Case("not finite", serve, one(push_of(np.inf)))
    yield Case("descent raises", serve, one(push_of(13.0)))
    yield Case("disk full", lambda: serve(checkpointer=Full(None)), one(push_of()))
    yield Case("busy", busy, one(push_of()))
    yield Case("draining", draining, [*one(push_of()), ("/readyz", None)])
    yield Case("unhealthy", lambda: serve(checkpointer=Failing(None)), [("/readyz", None)])


def exchanges_of_cases() -> Iterator[Exchange]:
    for name, make, steps in [*good_calls(), *refused_pushes()]:
        server = make()
        for path, body_of in steps:
            if body_of is None:
                for method in ("GET", "HEAD"):
                    yield Exchange(name, method, path, None, server.ask(method, path))
            else:
                body = body_of(server)
                yield Exchange(name, "POST", path, body, server.ask("POST", path, body))


def exchanges_of_all_routes() -> Iterator[Exchange]:
    """What every route refuses alike, and what all that take a body do."""
    calm, fragile = serve(), broken()
    for method, path in test_app.ANSWERED:
        body = test_app.good_body(path) if method == "POST" else None
        ask = functools.partial(calm.ask, method, path, body)
        yield Exchange("host", method, path, body, ask(Host="evil.example"))
        yield Exchange("page", method, path, body, ask(Origin="https://evil.example"))
        yield Exchange("token", method, path, body, ask(drop=["Authorization"]))
        yield Exchange("fault", method, path, body, fragile.ask(method, path, body))
        if body is None:
            continue
        yield Exchange("text", method, path, body, ask(Content_Type="text/plain"))
        yield Exchange("gzip", method, path, body, ask(Content_Encoding="gzip"))
        yield Exchange("chunked", method, path, body, ask(Transfer_Encoding="chunked"))
        other = push_of(run="run0") if path == "/v1/push" else call(run="run0")
        yield Exchange("run", method, path, other, calm.ask(method, path, other))
        yield Exchange("cut", method, path, None, calm.ask(method, path, body[:-1]))
        long = test_app.post_unread(calm, path, Content_Length="2147483648")
        yield Exchange("long", method, path, None, long)


@functools.cache
def exchanges() -> tuple[Exchange, ...]:
    return (*exchanges_of_cases(), *exchanges_of_all_routes())


def described(exchange: Exchange) -> dict[str, Any]:
    """What the file says of an answer."""
    responses = OPERATIONS[exchange.method, exchange.path]["responses"]
    return resolve(responses[str(exchange.answer.status_code)])


def words(response: dict[str, Any]) -> set[str]:
    """The values of ``error`` and ``status`` that a described answer may have."""
    found = set()
    for media in resolve(response).get("content", {}).values():
        schema = resolve(media.get(HEADER) or media["schema"]).get("properties", {})
        fields = resolve(schema.get("fields", {})).get("properties", {})
        for properties, name in ((schema, "error"), (fields, "status")):
            found |= set(properties.get(name, {}).get("enum", ()))
    return found


def word(answer: Any) -> str:
    """What an answer says that it is: an error, the status of a worker, or nothing."""
    if answer.mimetype == CONTENT_TYPE and answer.data:
        return header_of(answer.data)["fields"].get("status", "")
    is_json = answer.mimetype == "application/json" and answer.data
    return answer.json.get("error", "") if is_json else ""


# --- the contract is what the server does -----------------------------------------------------


def test_r48_paths_and_methods_are_those_of_the_app() -> None:
    assert sorted(OPERATIONS) == sorted(test_app.ANSWERED)


def test_r37_every_operation_but_healthz_and_the_pages_files_needs_a_token() -> None:
    open_ = {
        path
        for (_, path), found in OPERATIONS.items()
        if not found.get("security", API["security"])
    }
    assert open_ == {"/healthz"} | page.OPEN
    for (_, path), found in OPERATIONS.items():
        assert ("401" in found["responses"]) == (path not in open_)
    scheme = API["components"]["securitySchemes"]["runToken"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert API["security"] == [{"runToken": []}]
    either = [{"runToken": []}, {"readingToken": []}]
    readable = {path for (_, path), found in OPERATIONS.items() if found.get("security") == either}
    assert readable == page.READABLE


def test_r48_every_answer_is_described() -> None:
    assert len(exchanges()) > 100
    for exchange in exchanges():
        answer = exchange.answer
        where = (exchange.name, exchange.method, exchange.path, answer.status_code)
        content = described(exchange).get("content")
        if exchange.method == "HEAD":
            assert content is None and not answer.data, where
        else:
            assert content is not None, where
            assert problems_of(content, answer.mimetype, answer.data) == [], where
        assert ("Retry-After" in answer.headers) == (word(answer) == "busy"), where
        extra = set(answer.headers.keys()) - {"Content-Type", "Content-Length"}
        assert extra <= set(described(exchange).get("headers", {})), where


def test_r48_everything_that_is_described_is_given() -> None:
    given, expected = set(), set()
    for exchange in exchanges():
        status = str(exchange.answer.status_code)
        given.add((exchange.method, exchange.path, status, word(exchange.answer)))
    for (method, path), operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            expected |= {(method, path, status, said) for said in words(response) or {""}}
    assert given == expected


def test_r48_requests_that_are_taken_are_those_that_are_described() -> None:
    taken = set()
    for exchange in exchanges():
        if exchange.body is None or exchange.answer.mimetype != CONTENT_TYPE:
            continue
        content = OPERATIONS["POST", exchange.path]["requestBody"]["content"]
        assert problems_of(content, CONTENT_TYPE, exchange.body) == [], exchange.name
        taken.add(exchange.path)
    hopeful = [exchange for exchange in exchanges() if exchange.name in ("life", "sparse", "skip")]
    assert {exchange.answer.status_code for exchange in hopeful} == {200}
    assert taken == {path for method, path in OPERATIONS if method == "POST"}


#: Not 1.0, which is an integer to JSON Schema, nor "run1\n", which Python's $ lets pass.
BAD: list[tuple[str, Any]] = [
    *(("run", bad) for bad in test_app.BAD_IDS if bad != "run1\n"),
    *(("generation", bad) for bad in ("..", "", "a" * 65, None, 1)),
    *((name, bad) for name in ("partition", "clock", "base") for bad in (-1, True, "1", 2**53)),
    *(("examples", bad) for bad in (-1, 0.5, "1", 2**53, None)),
    *(("wait", bad) for bad in ("1", True, 2e300, None)),
    *(("weight", bad) for bad in ("1", True, 2e300, -1.0, None)),
    *(("loss", bad) for bad in ("1", True, -2e300)),
]


@pytest.mark.parametrize(("name", "bad"), BAD, ids=lambda value: f"{value!r:.20}")
def test_r48_fields_that_are_refused_are_those_that_do_not_fit(name: str, bad: Any) -> None:
    server = serve()
    for path in ("/v1/join", "/v1/pull", "/v1/push", "/v1/leave"):
        body = push_of(**{name: bad}) if path == "/v1/push" else call(**{name: bad})
        content = OPERATIONS["POST", path]["requestBody"]["content"]
        fits = not problems_of(content, CONTENT_TYPE, body)
        answer = server.ask("POST", path, body)
        assert fits == (answer.status_code == 200), path
        assert fits or (answer.status_code, word(answer)) == (400, "frame")
        assert path != "/v1/push" or not fits


def test_r48_a_push_without_a_field_that_it_must_have_does_not_fit() -> None:
    content = OPERATIONS["POST", "/v1/push"]["requestBody"]["content"]
    server, whole = serve(), decode(push_of())
    for name in ("run", "partition", "clock", "base", "generation", "weight"):
        fields = {key: value for key, value in whole.fields.items() if key != name}
        body = encode(fields, whole.entries, [whole.payload])
        refused = server.ask("POST", "/v1/push", body).status_code == 400
        assert bool(problems_of(content, CONTENT_TYPE, body)) == refused == (name != "weight")


def test_r24_the_limits_are_those_that_are_described() -> None:
    server = serve()
    for path in ("/v1/join", "/v1/pull", "/v1/leave"):
        body = OPERATIONS["POST", path]["requestBody"]
        limit = body["content"][CONTENT_TYPE]["x-limit-bytes"]
        assert f"{limit:,} bytes" in body["description"]
        assert server.ask("POST", path, bytes(limit)).status_code == 400
        assert server.ask("POST", path, bytes(limit + 1)).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v2", "NotFound"),
        ("GET", "/console", "NotFound"),
        ("POST", "/v1/push/", "NotFound"),
        ("OPTIONS", "/v1/push", "MethodNotAllowed"),
        ("GET", "/v1/push", "MethodNotAllowed"),
        ("POST", "/v1/model", "MethodNotAllowed"),
    ],
)
def test_r48_what_is_not_there_is_answered_as_described(method: str, path: str, name: str) -> None:
    response = API["components"]["responses"][name]
    answer = serve().ask(method, path)
    assert answer.status_code == {"NotFound": 404, "MethodNotAllowed": 405}[name]
    assert problems_of(response["content"], answer.mimetype, answer.data) == []
    assert serve().ask(method, path, drop=["Authorization"]).status_code == 401


# --- the file -------------------------------------------------------------------------------


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every object in the file, with the way to it."""
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, str(i)))


def test_the_file_is_openapi_3_1() -> None:
    assert re.fullmatch(r"3\.1\.\d+", API["openapi"])
    assert {"title", "version"} <= set(API["info"])
    assert API["jsonSchemaDialect"] == Draft202012Validator.META_SCHEMA["$id"]
    assert set(API["components"]) == {"securitySchemes", "responses", "schemas"}
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    for (method, path), operation in OPERATIONS.items():
        assert path.startswith("/") and operation["summary"].endswith(".")
        assert ("requestBody" in operation) == (method == "POST")
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", status)
            assert resolve(response)["description"]
    for item in API["paths"].values():
        assert set(item) <= set(VERBS)


def test_every_schema_is_one_and_every_part_is_used() -> None:
    used = set()
    for _, value in places(API):
        if isinstance(value.get("$ref"), str):
            assert resolve(value) is not None
            used.add(tuple(value["$ref"].split("/")[2:]))
        for name in ("schema", HEADER):
            if name in value:
                Draft202012Validator.check_schema(resolve(value[name]))
    for schema in API["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    named = {(kind, name) for kind in ("schemas", "responses") for name in API["components"][kind]}
    told = {("responses", name) for name in ("NotFound", "MethodNotAllowed")}
    assert named == used | told
    assert all(name in API["info"]["description"] for _, name in told)


def test_an_answer_that_is_not_described_is_seen() -> None:
    content = resolve(OPERATIONS["GET", "/v1/status"]["responses"]["200"])["content"]
    status = serve().store.status(timeline=True)
    for wrong in (
        {"new": 1},
        {"counts": {"lost": 1}},
        {"staleness": [[1, 2, 3]]},
        {"version": -1},
        {"workers": [{"partition": 0}]},
        {"timeline": [[0.5, 1, 64, 40.0]]},
    ):
        body = json.dumps(status | wrong).encode()
        assert len(problems_of(content, "application/json", body)) > 0, wrong
    assert problems_of(content, "application/json", json.dumps(status).encode()) == []
    assert len(problems_of(content, "text/html", b"")) == 1
