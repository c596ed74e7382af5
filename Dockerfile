# One image for all of docker-compose.yml: this package with its locked dependencies, and a Java.
# Spark is PySpark's own: `spark-class` starts masters and workers from the jars that pip installs.
FROM debian:bookworm-slim AS cluster

RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --uid 10001 --user-group --home-dir /data spark

# What the package needs is 1.1 GB and changes seldom: a change of the code does not come here.
WORKDIR /opt/sparkdist
COPY pyproject.toml constraints.txt docker/needed.py ./
RUN python3 needed.py plot >needed.txt \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
        -r needed.txt -c constraints.txt \
    && ln -s /opt/venv/lib/python3*/site-packages/pyspark /opt/spark

COPY README.md LICENSE ./
COPY sparkdist sparkdist
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && rm -rf build sparkdist sparkdist.egg-info
COPY jobs jobs
COPY docker /opt/docker

# These become volumes, which take owner and mode from here.
RUN install -d -o spark -g spark -m 700 /run/cluster /run/spark \
    && install -d -o spark -g spark /data /scratch

ENV PATH=/opt/venv/bin:$PATH \
    PYSPARK_PYTHON=/opt/venv/bin/python \
    SPARK_HOME=/opt/spark \
    SPARK_CONF_DIR=/run/spark \
    SPARK_LOCAL_DIRS=/scratch
USER spark
WORKDIR /data
ENTRYPOINT ["/opt/docker/entrypoint"]
CMD ["idle"]


FROM cluster AS notebook
USER root
RUN cd /opt/sparkdist && python needed.py plot notebook >needed.txt \
    && pip install --no-cache-dir --disable-pip-version-check -r needed.txt -c constraints.txt
COPY notebooks /opt/sparkdist/notebooks
USER spark
CMD ["notebook"]
