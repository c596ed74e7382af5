"""Write the benchmarks' tables into the pages, between their markers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from common import RESULTS, markdown

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Replace what stands between ``<!-- bench NAME -->`` and ``<!-- end -->``."""
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"<!-- bench (\w+) -->", text):
            content = json.loads((RESULTS / f"{name}.json").read_text())
            pattern = rf"(<!-- bench {name} -->\n).*?(\n?<!-- end -->)"
            table = markdown(content)
            text = re.sub(pattern, lambda m, t=table: f"{m[1]}{t}\n<!-- end -->", text, flags=re.S)
        page.write_text(text)


if __name__ == "__main__":
    main()
