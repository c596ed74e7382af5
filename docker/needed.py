"""Print what the package needs, and what some extras need beside it:  needed.py [EXTRA ...]."""

import sys
from pathlib import Path

import tomllib

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
needed = list(project["dependencies"])
for extra in sys.argv[1:]:
    needed += project["optional-dependencies"][extra]
# An extra may name others of the package, which is not there to be asked yet.
sys.stdout.write("\n".join(line for line in needed if not line.startswith(project["name"])))
