#!/usr/bin/env bash
# Run a command of .venv with a Java that Spark accepts and with .venv's own Spark, whatever
# other Spark the caller's environment names:  tools/with-spark.sh spark-submit jobs/train.py ...
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

JAVA_HOME=$("$root/tools/setup.sh" java)
PYSPARK_PYTHON=$root/.venv/bin/python
SPARK_HOME=$("$PYSPARK_PYTHON" -c \
    'import importlib.util as u; print(u.find_spec("pyspark").submodule_search_locations[0])')
SPARK_CONF_DIR=$root/tools/spark-conf
# Everything runs on this machine: a host name that does not resolve must not matter.
SPARK_LOCAL_IP=${SPARK_LOCAL_IP:-127.0.0.1}
export JAVA_HOME PYSPARK_PYTHON PYSPARK_DRIVER_PYTHON=$PYSPARK_PYTHON SPARK_HOME SPARK_CONF_DIR \
    SPARK_LOCAL_IP PATH="$root/.venv/bin:$PATH"
unset PYTHONPATH PYTHONHOME PYSPARK_SUBMIT_ARGS SPARK_SUBMIT_OPTS SPARK_REMOTE SPARK_ENV_LOADED

if [[ $1 != spark-submit ]]; then
    exec "$@"
fi
# The JVM prints these before Spark can say anything about logging; both are Spark's own doing.
{
    "$@" 2>&1 1>&3 3>&- | { grep --line-buffered -vE \
        '^WARNING: (Using incubator modules: jdk.incubator.vector|package sun.security.action not in java.base)$' >&2 || :; }
} 3>&1
