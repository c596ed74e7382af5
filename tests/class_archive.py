"""Write the archive of Spark's classes from which the JVMs of the tests start in half the time.

Java calls it class data sharing (CDS): classes come from a mapped file, parsed and verified.  It
takes a minute, once for each environment; without it, or with another Java, tests run as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ARCHIVE, LOCAL, QUICK, start_session


def use_much() -> None:
    """Load the classes that most tests need: SQL, Arrow, Parquet, ML and both engines."""
    from sparkdist import Dataset, Logistic, minimize, read_dataframe

    with tempfile.TemporaryDirectory() as folder:
        spark = start_session(LOCAL, Path(folder))
        df = read_dataframe(spark, "a9a-test").limit(200)
        df.write.parquet(f"{folder}/table")
        for engine in ("aggregate", "resident"):
            minimize(Logistic(), df, engine=engine, max_iter=2, progress=False)
        Dataset.from_parquet(spark, f"{folder}/table").unpersist()
        spark.sparkContext.parallelize(range(4), 2).map(float).sum()
        spark.stop()


def main() -> None:
    """Write it, unless it is there; until it is whole it has another name."""
    if ARCHIVE.exists():
        return
    draft = ARCHIVE.with_suffix(f".{os.getpid()}")
    options = f"{QUICK} -XX:ArchiveClassesAtExit={draft}"
    code = "from tests.class_archive import use_much; use_much()"
    command = [sys.executable, "-c", code]
    root, environment = Path(__file__).parents[1], os.environ | {"JDK_JAVA_OPTIONS": options}
    # The JVM writes it when Python has gone; until then it holds the pipes open.
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=300)
    if run.returncode or not draft.exists():
        sys.exit(f"no archive of Spark's classes: {run.stderr.decode()}")
    draft.replace(ARCHIVE)


if __name__ == "__main__":
    main()
