# The verbs of this project; `make` alone lists them.  Each one sets up what it needs first.

DEMO_TRAIN = jobs/train.py --data a9a --test-data a9a-test --objective logistic --l2 1e-3 --tol 1e-9 --engine auto \
	--expect 0.33334075206872 --output model
DEMO_PREDICT = jobs/predict.py --model model --data a9a-test

PY = .venv/bin/python
# Commands that start a JVM go through this: it finds Java and this checkout's Spark.
SPARK = tools/with-spark.sh
SUBMIT = $(SPARK) spark-submit --master 'local[2]'

# A file to a process, in the order that tests/conftest.py gives them.
FILES = --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help venv demo check test test-all test-compose bench docs notebooks format clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

venv: ## make .venv with the package and its tools (PYTHON=... chooses the interpreter)
	@tools/setup.sh venv

demo: venv ## train a model on real data, then predict with it: about a minute
	$(SUBMIT) $(DEMO_TRAIN)
	$(SUBMIT) $(DEMO_PREDICT)

check: venv ## format, lint, types and the tests that need no JVM: two minutes
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	PYTHONHASHSEED=0 $(PY) -m pytest -q -n 2 -m "not (spark or cluster or process or long or slow or compose)"

test: venv ## all tests but the slow ones, with Spark: on both cores, a file to a process
	@tools/setup.sh browser >/dev/null
	@$(SPARK) $(PY) -m tests.class_archive
	PYTHONHASHSEED=0 $(SPARK) $(PY) -m pytest -q -n 3 $(FILES) -m "not slow and not cluster and not compose"
	PYTHONHASHSEED=0 $(SPARK) $(PY) -m pytest -q -n 2 $(FILES) -m "cluster and not slow"

test-all: venv ## every test, at full strength
	@tools/setup.sh browser >/dev/null
	@$(SPARK) $(PY) -m tests.class_archive
	SPARKDIST_FULL=1 $(SPARK) $(PY) -m pytest -q -m "not compose"

test-compose: venv ## the cluster of docker-compose.yml trains and survives: needs Docker, minutes
	$(PY) -m pytest -q -s -m compose tests/test_compose.py

bench: venv ## run every benchmark, then write the tables of the README from the results
	@for bench in benchmarks/bench_*.py; do \
		echo "$$bench" && $(SPARK) $(PY) "$$bench" || exit 1; \
	done
	$(SPARK) $(PY) benchmarks/bench_resident.py --fast-ingest
	$(PY) benchmarks/plots.py
	$(PY) benchmarks/tables.py

docs: venv ## build the site of the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

notebooks: venv ## run the notebooks in full, each in its kernel: minutes
	@out=$$(mktemp -d) && for book in notebooks/*.ipynb; do \
		began=$$(date +%s) && $(SPARK) $(PY) -m nbconvert --log-level ERROR --to notebook --execute \
			--output-dir "$$out" "$$book" && echo "$$book: $$(($$(date +%s) - began)) s" || exit 1; \
	done && echo "with what they showed: $$out"

format: venv ## put the code into the one form
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean: ## remove what the verbs left behind, all but .venv
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist *.egg-info
	rm -rf spark-warehouse metastore_db derby.log model
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
