"""`make bench`: every benchmark's rows in one file.

python tests/benchmarks/run.py --json exp/bench.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = ("store.py", "training.py", "search.py", "models.py", "dump.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for script in SCRIPTS:
            out = Path(temporary) / f"{script}.json"
            print(f"== {script}", flush=True)
            subprocess.run([sys.executable, HERE / script, "--json", out], check=True)
            rows += json.loads(out.read_text())
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{arguments.json}: {len(rows)} rows")


if __name__ == "__main__":
    main()
