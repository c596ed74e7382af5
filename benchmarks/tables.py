"""Write the benchmarks' tables into the README, between their markers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from common import RESULTS, markdown

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Replace what stands between ``<!-- bench NAME -->`` and ``<!-- end -->``."""
    text = README.read_text()
    for name in re.findall(r"<!-- bench (\w+) -->", text):
        content = json.loads((RESULTS / f"{name}.json").read_text())
        pattern = rf"(<!-- bench {name} -->\n).*?(\n?<!-- end -->)"
        table = markdown(content)
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}{t}\n<!-- end -->", text, flags=re.S)
    README.write_text(text)


if __name__ == "__main__":
    main()
