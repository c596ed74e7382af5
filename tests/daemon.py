"""PySpark's daemon with sparkdist imported: a worker after one that died starts at once.

A fresh worker imports for about a second, which tests of faults would mostly wait for.
"""

from pyspark.daemon import manager

import sparkdist
import tests.tally

if __name__ == "__main__":
    assert sparkdist and tests.tally
    manager()
