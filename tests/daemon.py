"""PySpark's daemon with what workers need imported before they are forked: one starts at once.

A fresh worker takes 1 to 1.5 s of CPU: for its imports, and for Python's reading of the directory
of pyspark.zip anew for each of the 18 packages that came from there (3.11).
"""

import gc
import sys
from zipimport import zipimporter

import pandas
import pyspark.ml
import pyspark.sql.conversion
import pyspark.worker
from pyspark.daemon import manager

import sparkdist.spark.engines.resident_task
import sparkdist.spark.training.train
import tests.tally

LOADED = (pandas, pyspark.ml, pyspark.sql.conversion, pyspark.worker, sparkdist, tests.tally)

if __name__ == "__main__":
    assert all(LOADED)
    for place, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimporter):
            del sys.path_importer_cache[place]  # made again, from what is known, when needed
    gc.freeze()  # workers collect after each task
    manager()
