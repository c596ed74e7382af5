"""The cluster of docker-compose.yml: it trains by both paths, survives a worker, and is shut.

Run by ``make test-compose`` alone: it needs a Docker engine, and builds an image of 1.7 GB.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.compose

ROOT = Path(__file__).resolve().parents[1]
#: A project and ports of its own: a cluster that somebody works with is left alone.
PROJECT = f"sparkdist-test-{os.getpid()}"
#: A-L2: logistic loss of a9a + 0.0005 |w|^2; newton-cg and L-BFGS-B of SciPy agree to 1e-14.
OPTIMUM = 0.33334075206872
TRAIN = "/opt/sparkdist/jobs/train.py"
SECRETIVE = re.compile(r"secret|token|passw|credential|private.?key|api.?key", re.I)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()
ENVIRONMENT = {**os.environ, "SPARKDIST_MASTER_PORT": str(PORT)}


def run(*command: str, timeout: float = 60, check: bool = True) -> str:
    """What a command says, on both channels."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def find_compose() -> list[str]:
    """The new command, or the old one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            if subprocess.run([*command, "version"], capture_output=True, timeout=30).returncode:
                continue
        except FileNotFoundError:
            continue
        return command
    pytest.fail("there is neither `docker compose` nor docker-compose")


def tell(text: str) -> None:
    """A line for the log of ``make test-compose``."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stdout.flush()


class Cluster:
    """The containers of the project."""

    def __init__(self) -> None:
        self._compose = [*find_compose(), "--project-name", PROJECT]

    def compose(self, *arguments: str, timeout: float = 60, check: bool = True) -> str:
        return run(*self._compose, *arguments, timeout=timeout, check=check)

    def in_driver(self, *command: str) -> list[str]:
        """The command line that runs a command in the driver's container."""
        return [*self._compose, "exec", "-T", "driver", *command]

    def containers(self, *services: str) -> list[dict[str, Any]]:
        """What Docker knows of them."""
        found = self.compose("ps", "--quiet", *services).split()
        return json.loads(run("docker", "inspect", *found))

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            states = [c["State"]["Health"]["Status"] for c in self.containers()]
            if states == ["healthy"] * 4 and self.page()["aliveworkers"] == 2:
                return
            assert time.monotonic() < deadline, f"{states}\n{self.compose('logs', check=False)}"
            time.sleep(1)

    def page(self) -> dict[str, Any]:
        """The master's page, at the port that is published."""
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/json/", timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    run("docker", "version", timeout=30)
    cluster = Cluster()
    try:
        tell("building the image: minutes, if PySpark has to be installed")
        cluster.compose("build", timeout=1500)
        cluster.compose("up", "--detach", timeout=300)
        cluster.wait_until_healthy()
        tell("the cluster is healthy")
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--timeout", "5", timeout=120, check=False)


# --- R49: neither root nor secrets ------------------------------------------------------------


def test_r49_the_image_holds_no_secret_and_its_user_is_not_root(cluster: Cluster) -> None:
    (image,) = json.loads(run("docker", "image", "inspect", "sparkdist"))
    assert image["Config"]["User"] == "spark"
    names = [variable.partition("=")[0] for variable in image["Config"]["Env"]]
    assert [name for name in names if SECRETIVE.search(name)] == []
    history = run("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", "sparkdist")
    assert SECRETIVE.findall(history) == []
    volumes = ["/run/cluster", "/run/spark", "/data", "/scratch"]
    assert in_image("find", *volumes, "-mindepth", "1") == ""
    own = set(in_image("ls", "-A", "/opt/sparkdist").split())
    assert own >= {"jobs", "constraints.txt"}
    assert not {name for name in own if name.startswith(".")}  # no .git, no .env


def in_image(command: str, *arguments: str) -> str:
    """What a command says in a container of its own, without the cluster."""
    return run("docker", "run", "--rm", "--entrypoint", command, "sparkdist", *arguments)


def test_r49_the_containers_can_do_little_and_are_reached_from_this_machine_only(
    cluster: Cluster,
) -> None:
    published = []
    for container in cluster.containers():
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"] and not host["Privileged"]
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert 0 < host["Memory"] <= 2 << 30
        users = {line.split()[1] for line in processes(container)}
        assert users == {"10001"}
        for at in (container["NetworkSettings"]["Ports"] or {}).values():
            published += [(one["HostIp"], one["HostPort"]) for one in at or ()]
    assert published == [("127.0.0.1", str(PORT))]
    attempts = ("touch /opt/sparkdist/x", "touch /x", "cat /etc/shadow")
    script = "; ".join(f"{attempt} && echo done" for attempt in attempts)
    said = run(*cluster.in_driver("sh", "-c", f"{script}; echo tried"))
    assert "tried" in said and "done" not in said


def test_r49_the_clusters_secret_is_seen_nowhere_and_needed_everywhere(cluster: Cluster) -> None:
    secret = run(*cluster.in_driver("cat", "/run/cluster/secret")).strip()
    assert len(secret) == 44  # 32 bytes in base64
    assert run(*cluster.in_driver("stat", "-c", "%a %U", "/run/cluster/secret")) == "600 spark\n"
    seen = cluster.compose("logs") + json.dumps(cluster.containers())
    for container in cluster.containers():
        seen += "".join(processes(container))
    assert "deploy.worker.Worker" in seen and secret not in seen
    # An application without the configuration, in which the secret is, gets no executors.
    known = applications(cluster)
    command = ["spark-submit", "--master", "spark://master:7077", TRAIN, "--data", "a9a"]
    said = run(
        *cluster.in_driver("env", "SPARK_CONF_DIR=/tmp", "timeout", "20", *command), check=False
    )
    assert "passes" not in said
    assert applications(cluster) == known


def processes(container: dict[str, Any]) -> list[str]:
    """Process id, user and arguments of each."""
    return run("docker", "top", container["Id"], "-eo", "pid,uid,args").splitlines()[1:]


def applications(cluster: Cluster) -> set[str]:
    """All that the master has ever let in."""
    page = cluster.page()
    return {one["id"] for one in page["activeapps"] + page["completedapps"]}


# --- training ---------------------------------------------------------------------------------


def documented() -> list[list[str]]:
    """The lines of docs/clusters.md that are to be run in the driver's container."""
    page = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^docker-compose exec driver (spark-submit .*)$", page, re.M)
    return [line.split() for line in lines]


def test_the_lines_of_the_page_train_on_the_cluster(cluster: Cluster) -> None:
    exact, server = documented()
    said = run(*cluster.in_driver(*exact), timeout=400)
    assert re.search(r"^expected +0\.33334075206872 +reached", said, re.M), said
    tell(f"the exact path, as documented:\n{report(said)}")
    said = run(*cluster.in_driver(*server), timeout=400)
    found = re.search(r"^objective +(\S+)", said, re.M)
    assert found and float(found[1]) == pytest.approx(OPTIMUM, rel=0.05), said
    tell(f"the model server, as documented:\n{report(said)}")


def report(said: str) -> str:
    """The table at the end of what a job says."""
    return said[said.index("\nsparkdist ") :].strip()


class Job:
    """The job of compose_job.py, which says in JSON how it is going."""

    def __init__(self, cluster: Cluster, path: str):
        source = (ROOT / "tests" / "compose_job.py").read_text()
        put = [*cluster.in_driver("tee", "/data/job.py")]
        subprocess.run(
            put, cwd=ROOT, env=ENVIRONMENT, input=source, text=True, check=True, timeout=60,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._command = cluster.in_driver("spark-submit", "/data/job.py", path)

    def __enter__(self) -> Job:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._limit = threading.Timer(400, self._process.kill)
        self._limit.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._limit.cancel()
        with self._process:
            self._process.kill()

    def hears(self, key: str) -> dict[str, Any]:
        """The next line that has the key."""
        assert self._process.stdout
        other: deque[str] = deque(maxlen=40)
        for line in self._process.stdout:
            if not line.startswith("{"):
                other.append(line)
            elif key in (said := json.loads(line)):
                return said
        raise AssertionError(f"the job ended before it said {key!r}:\n{''.join(other)}")


@pytest.mark.parametrize(("path", "at"), [("exactly", 10), ("on_a_server", 60)])
def test_a_worker_that_is_killed_in_mid_training_changes_no_bit(
    cluster: Cluster, path: str, at: int
) -> None:
    with Job(cluster, path) as job:
        undisturbed = job.hears("run")
        tell(f"{path}: undisturbed: {undisturbed['objective']:.14g}")
        victim = job.hears("hosts")["hosts"][1]
        job.hears("begins")
        while (now := job.hears("at")["at"]) < at:
            continue
        run("docker", "kill", victim)
        tell(f"{path}: killed worker {victim} at {now}, in mid-training")
        after = job.hears("at")["at"]
        disturbed = job.hears("run")
        hosts = job.hears("hosts")["hosts"]
    tell(f"{path}: the rest was done by {set(hosts)}")
    tell(f"{path}: disturbed: {disturbed['objective']:.14g}; the optimum is {OPTIMUM}")
    (dead,) = json.loads(run("docker", "inspect", victim))
    assert dead["State"]["Status"] == "exited" and dead["State"]["ExitCode"] == 137
    assert victim not in hosts and after >= now
    assert disturbed["bits"] == undisturbed["bits"]
    assert disturbed["objective"] == undisturbed["objective"]
    # Ten epochs at a constant rate end near the optimum; L-BFGS ends there.
    near = {"exactly": 1e-10, "on_a_server": 0.02}[path]
    assert disturbed["objective"] == pytest.approx(OPTIMUM, rel=near)
    tell("the master: " + " | ".join(told_by_the_master(cluster)))
    run("docker", "start", victim)
    cluster.wait_until_healthy()


def told_by_the_master(cluster: Cluster) -> list[str]:
    """Its last words on lost workers."""
    lines = cluster.compose("logs", "master").splitlines()
    lost = [line.partition("INFO Master: ")[2] for line in lines if "Removing worker" in line]
    assert lost
    return lost[-1:]
