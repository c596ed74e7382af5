"""The doctor's checks: each takes facts and returns findings; none looks at anything itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from os.path import dirname
from typing import TypeVar

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sparkdist.commands._facts import Cluster, Installation, Java
from sparkdist.commands._finding import FIX, NOTE, OK, Finding
from sparkdist.commands._probe import PACKAGES, Machine

__all__ = ["OF_CLUSTER", "of_java", "of_packages", "of_python", "of_spark"]

T = TypeVar("T")

#: Spark's documentation, "Downloading": 4.0 runs on Java 17 and 21, later ones on newer ones too.
_JAVA = 17
#: A partition's file is reserved 64 MiB ahead (spark/residency.py); below, nothing can be ingested.
_NO_ROOM, _LITTLE_ROOM = 64 << 20, 1 << 30
_YES = ("1", "true", "yes")


# --- before a session -------------------------------------------------------------------------


def of_python(here: Installation) -> list[Finding]:
    """The driver's Python."""
    found = f"{here.python} at {here.executable}"
    if here.python not in SpecifierSet(here.requires_python, prereleases=True):
        todo = f"make an environment with Python {here.requires_python}"
        return [Finding(FIX, "Python", found, todo)]
    findings = [Finding(OK, "Python", found)]
    if not here.pyspark_python and dirname(here.python3) != dirname(here.executable):
        # The commands here see to it themselves in local mode.
        what = f"Spark would run {here.python3 or 'python3'}: PYSPARK_PYTHON is not set"
        todo = f"export PYSPARK_PYTHON={here.executable}, for programs of your own"
        findings.append(Finding(NOTE, "Python", what, todo))
    return findings


def of_java(java: Java) -> list[Finding]:
    """The Java that Spark will run."""
    install = (
        f"install Java {_JAVA} or newer, as root on Debian or Ubuntu: apt-get install"
        f" openjdk-{_JAVA}-jre-headless; one that is not on the PATH is named by JAVA_HOME"
    )
    if not java.path:
        return [Finding(FIX, "Java", "there is none: JAVA_HOME is not set, the PATH has no java",
                        install)]  # fmt: skip
    if not java.version:
        todo = "JAVA_HOME must be the folder that has bin/java, or not be set"
        return [Finding(FIX, "Java", f"{java.path} does not say its version", todo)]
    major = int(java.version.removeprefix("1.").split(".")[0])
    found = f"{major} at {java.path}"
    return [Finding(OK, "Java", found) if major >= _JAVA else Finding(FIX, "Java", found, install)]


def of_spark(here: Installation) -> list[Finding]:
    """PySpark, and the Spark that it will start."""
    if here.spark_remote:
        what = f"SPARK_REMOTE is {here.spark_remote}: Spark Connect, which has no RDDs"
        return [Finding(FIX, "Spark", what, "unset SPARK_REMOTE")]
    if not here.pyspark:
        return [Finding(FIX, "Spark", "there is no PySpark", "pip install sparkdist brings it")]
    if not here.spark_home:
        return [Finding(OK, "Spark", f"PySpark {here.pyspark} and the Spark in its package")]
    if not here.spark:
        what = f"SPARK_HOME is {here.spark_home}, where there is no Spark"
        return [Finding(FIX, "Spark", what, "unset SPARK_HOME: PySpark brings a Spark")]
    found = f"PySpark {here.pyspark}, Spark {here.spark} at {here.spark_home}"
    if here.spark == here.pyspark:
        return [Finding(OK, "Spark", found)]
    todo = f"they must be the same: unset SPARK_HOME, or pip install pyspark=={here.spark}"
    return [Finding(FIX, "Spark", found, todo)]


def of_packages(here: Installation) -> list[Finding]:
    """What sparkdist needs, in the versions that it needs."""
    wrong = [
        Finding(FIX, need.name, f"{version or 'missing'}; sparkdist needs {need.specifier}",
                f"pip install '{need.name}{need.specifier}'")
        for need, version in here.packages
        if version is None or (version and not need.specifier.contains(version, prereleases=True))
    ]  # fmt: skip
    shown = ", ".join(f"{need.name} {version}" for need, version in here.packages)
    return wrong or [Finding(OK, "packages", shown)]


# --- with a session ---------------------------------------------------------------------------


def of_executors(cluster: Cluster) -> list[Finding]:
    """Who answered, and the Python there."""
    hosts = sorted({machine.host for machine in cluster.executors})
    n = len(cluster.executors)
    found = f"{n} answered on {', '.join(hosts[:8])}{' ...' if len(hosts) > 8 else ''}"
    if not n:
        return [Finding(FIX, "executors", "none answered", "look at Spark's web page for workers")]
    findings = [Finding(OK, "executors", f"{found}, master {cluster.master}")]
    for version, where in _others(cluster, _python).items():
        minor = version.split(".")[:2] != cluster.driver.python.split(".")[:2]
        level = FIX if minor else NOTE
        todo = "let PYSPARK_PYTHON, or spark.pyspark.python, name the same Python everywhere"
        found = f"{version} on {where}, {cluster.driver.python} on the driver"
        findings.append(Finding(level, "Python", found, todo))
    return findings


def of_versions(cluster: Cluster) -> list[Finding]:
    """Packages of the executors against the driver's: the same, but for the last number."""
    findings = []
    for name in PACKAGES:
        ours = cluster.driver.versions[name]
        for version, where in _others(cluster, partial(_version, name)).items():
            findings.append(_compare(name, ours, version, where))
    same = f"the driver's {', '.join(PACKAGES)}"
    return findings or [Finding(OK, "versions", f"every executor has {same}")]


def _compare(name: str, ours: str | None, theirs: str | None, where: str) -> Finding:
    shown = "missing" if theirs is None else theirs or "of unknown version"
    found = f"{shown} on {where}, {ours or 'not known'} on the driver"
    if theirs is None:
        ship = "install it there, or ship the environment with --archives"
        return Finding(FIX, name, found, ship)
    todo = "install one version everywhere, or ship the environment with --archives"
    if not (ours and theirs):  # of a zip on the path
        return Finding(NOTE, name, found, todo)
    same_minor = Version(ours).release[:2] == Version(theirs).release[:2]
    # What driver and executors say to each other may change with every version of sparkdist.
    return Finding(NOTE if same_minor and name != "sparkdist" else FIX, name, found, todo)


def of_reach(cluster: Cluster) -> list[Finding]:
    """The way from the executors to a port of the driver, which the model server will have."""
    said = sorted({m.unreachable for m in cluster.executors if m.unreachable})
    if said:
        findings = []
        for sentence in said:
            found, _, todo = sentence.partition(": set ")
            found = found.replace("the model server", "a port of the driver")
            findings.append(Finding(FIX, "network", found, f"set {todo}" if todo else ""))
        return findings
    asked = [m for m in cluster.executors if m.versions["sparkdist"] is not None]
    if len(asked) < len(cluster.executors):
        return [Finding(NOTE, "network", "not asked where sparkdist is missing")]
    return [Finding(OK, "network", f"every executor reaches the driver at {cluster.host}")]


def of_slots(cluster: Cluster) -> list[Finding]:
    """How many tasks run side by side: as many workers there can be."""
    found = f"{_count(cluster.slots, 'task slot')} on {_count(len(cluster.executors), 'executor')}"
    if cluster.slots > 1:
        return [Finding(OK, "slots", found)]
    todo = (
        "local[4] has 4; on a cluster see spark.executor.cores, spark.executor.instances and"
        " spark.task.cpus"
    )
    return [Finding(NOTE, "slots", f"{found}: nothing runs side by side", todo)]


def of_memory(cluster: Cluster) -> list[Finding]:
    """The heap, and what Python has beside it: workers and memory-mapped blocks are outside."""
    key = "spark.driver.memory" if cluster.local else "spark.executor.memory"
    heap = cluster.settings.get(key, "1g, Spark's default")
    free = min((m.memory for m in cluster.executors if m.memory is not None), default=None)
    beside = "" if free is None else f"; {free / 2**30:.1f} GiB are free on its machine"
    found = f"{key} is {heap}{beside}"
    findings = [Finding(OK, "memory", found)]
    if free is not None and free < _LITTLE_ROOM:
        todo = "Python's workers and the page cache of the blocks need it: end other programs"
        findings = [Finding(NOTE, "memory", found, todo)]
    if limit := cluster.settings.get("spark.executor.pyspark.memory"):
        what = f"spark.executor.pyspark.memory is {limit}, and memory-mapped blocks count"
        todo = "leave it unset, or give it room for all rows of an executor"
        findings.append(Finding(NOTE, "memory", what, todo))
    overhead = any(name.startswith("spark.executor.memoryOverhead") for name in cluster.settings)
    if cluster.master.startswith(("yarn", "k8s")) and not overhead:
        what = "the container ends Python workers that outgrow spark.executor.memoryOverhead"
        todo = "it is a tenth of the heap, 384 MiB at least; set it to what the rows of a task need"
        findings.append(Finding(NOTE, "memory", what, todo))
    return findings


def of_blas(cluster: Cluster) -> list[Finding]:
    """NumPy's libraries: one on all machines, with threads that the cores can carry."""
    libraries = {m.host: _libraries(m) for m in (cluster.driver, *cluster.executors)}
    if not any(libraries.values()):
        return [Finding(NOTE, "BLAS", "none that threadpoolctl knows: its threads are not known")]
    shown = ", ".join(sorted(set(filter(None, libraries.values()))))
    threads = max((b.threads for m in cluster.executors for b in m.blas or ()), default=1)
    findings = [Finding(OK, "BLAS", f"{shown}; {_count(threads, 'thread')} in a task,"
                        f" {_most_threads(cluster.driver)} on the driver")]  # fmt: skip
    if len(set(libraries.values())) > 1:
        todo = "install the same NumPy everywhere where the same bits matter"
        findings.append(Finding(NOTE, "BLAS", "not the same on all machines", todo))
    tasks = -(-cluster.slots // max(len(cluster.executors), 1))
    cores = min((m.cores for m in cluster.executors), default=1)
    if threads > 1 and threads * tasks > cores:
        found = f"{tasks} tasks of {threads} threads each share {_count(cores, 'core')}"
        todo = (
            "set spark.executorEnv.OMP_NUM_THREADS=1, and no OPENBLAS_NUM_THREADS or"
            " MKL_NUM_THREADS in the executors' environment"
        )
        findings.append(Finding(NOTE, "BLAS", found, todo))
    return findings


def of_folders(cluster: Cluster) -> list[Finding]:
    """Where blocks are kept: writable, with room."""
    todo = "let spark.local.dir (SPARK_LOCAL_DIRS, LOCAL_DIRS on YARN) name a folder with room"
    findings, free = [], []
    for machine in cluster.executors:
        for path, room, problem in machine.folders:
            where, gib = f"{path} on {machine.host}", f"{room / 2**30:.1f} GiB free"
            free.append(room)
            if problem or room < _NO_ROOM:
                findings.append(Finding(FIX, "blocks", f"{where}: {problem or gib}", todo))
            elif room < _LITTLE_ROOM:
                findings.append(Finding(NOTE, "blocks", f"{where}: {gib}", todo))
    if not free:
        return [Finding(FIX, "blocks", "the executors name no local directory", todo)]
    least = f"{min(free) / 2**30:.1f} GiB are free in the fullest of their folders"
    return findings or [Finding(OK, "blocks", least)]


def of_settings(cluster: Cluster) -> list[Finding]:
    """Settings of Spark that change what sparkdist does."""
    findings = []
    if _is_on(cluster.settings, "spark.speculation"):
        found = "speculation is on: a copy of a task counts once, and holds a slot"
        findings.append(Finding(OK, "settings", found))
    if _is_on(cluster.settings, "spark.dynamicAllocation.enabled"):
        found = "dynamic allocation is on: what a lost executor held is ingested again"
        todo = "for engine='resident', bsp and ssp keep executors: turn it off for the job"
        findings.append(Finding(NOTE, "settings", found, todo))
    if cluster.encryption:
        found = f"{', '.join(cluster.encryption)}: does not cover the model server's own port"
        todo = "give --certificate and --key, or say --plaintext; the aggregate engine is covered"
        findings.append(Finding(NOTE, "settings", found, todo))
    plain = "no speculation, no dynamic allocation, no encryption"
    return findings or [Finding(OK, "settings", plain)]


#: In the order in which they are told.
OF_CLUSTER: dict[str, Callable[[Cluster], list[Finding]]] = {
    "executors": of_executors,
    "versions": of_versions,
    "network": of_reach,
    "slots": of_slots,
    "memory": of_memory,
    "BLAS": of_blas,
    "blocks": of_folders,
    "settings": of_settings,
}


def _others(cluster: Cluster, get: Callable[[Machine], T]) -> dict[T, str]:
    """What executors have and the driver has not, and on which hosts."""
    found: dict[T, list[str]] = {}
    for machine in cluster.executors:
        if get(machine) != get(cluster.driver):
            found.setdefault(get(machine), []).append(machine.host)
    return {value: ", ".join(sorted(set(hosts))) for value, hosts in found.items()}


def _python(machine: Machine) -> str:
    return machine.python


def _version(name: str, machine: Machine) -> str | None:
    return machine.versions[name]


def _libraries(machine: Machine) -> str:
    return ", ".join(sorted({f"{blas.name} {blas.version}" for blas in machine.blas or ()}))


def _most_threads(machine: Machine) -> int:
    return max((blas.threads for blas in machine.blas or ()), default=1)


def _is_on(settings: Mapping[str, str], name: str) -> bool:
    return settings.get(name, "false").lower() in _YES


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
