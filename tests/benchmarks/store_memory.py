"""Peak memory of writing, checking, converting, merging and reading stores of two sizes.

Each runs in a process of its own, which watches its anonymous memory (what it allocates; pages of
mapped files are the page cache's and given up when others need them) and its peak resident set.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tests.benchmarks.store_tiles import tile_store  # noqa: E402

from kdpipe.store import StoreWriter, finish, open_store  # noqa: E402
from kdpipe.store.blocks import mapped_blocks  # noqa: E402
from kdpipe.store.check import verify_store  # noqa: E402
from kdpipe.store.convert import convert_store  # noqa: E402
from kdpipe.store.merge import join_stores  # noqa: E402
from kdpipe.store.opening import open_image  # noqa: E402
from kdpipe.store.repair import record_at  # noqa: E402

__all__ = ["memory_rows"]

SMALL, LARGE = 1_000, 100_000


def write(store: Path, out: Path) -> None:
    """Write every record again through a writer, as a dump does, and finish."""
    image = open_image(store)
    with StoreWriter(out, image.header) as writer:
        for block in mapped_blocks(image):
            for position in range(len(block.rows)):
                writer.add_record(record_at(block, position))
    finish(out)


def read(store: Path, out: Path) -> None:
    """Shuffled batches, as in training: 20,000 utterances."""
    opened = open_store(store)
    ids = list(opened)
    for chosen in np.random.default_rng(0).integers(0, len(ids), (625, 32)).tolist():
        opened.read_batch([ids[position] for position in chosen])


ACTIONS: dict[str, Callable[[Path, Path], object]] = {
    "write": write,
    "verify": lambda store, out: verify_store(store),
    "convert": lambda store, out: convert_store(store, out.with_suffix(".h5")),
    "compact": lambda store, out: convert_store(store, out, compact=True, level=1),
    "merge": lambda store, out: join_stores([store], out),
    "read": read,
}


def memory_rows(base: Path, folder: Path) -> list[dict[str, Any]]:
    """Peaks at both sizes; the baseline is the small store."""
    stores = {count: folder / f"memory{count}.zarr" for count in (SMALL, LARGE)}
    for count, store in stores.items():
        tile_store(base, store, count)
    rows = []
    for action in ACTIONS:
        peaks = {count: _measure(action, store, folder) for count, store in stores.items()}
        for kind in ("anonymous", "resident"):
            small, large = (round(peaks[count][kind], 1) for count in (SMALL, LARGE))
            rows.append(
                {
                    "name": f"memory_{action}_{kind}",
                    "value": large,
                    "unit": "MB",
                    "baseline": small,
                    "ratio": round(large / small, 3),
                    "conditions": f"peak at {LARGE} utterances; baseline {SMALL}",
                }
            )
    return rows


def _measure(action: str, store: Path, folder: Path) -> dict[str, float]:
    out = folder / f"out-{action}-{store.name}"
    command = [sys.executable, __file__, action, str(store), str(out)]
    answer: dict[str, float] = json.loads(subprocess.check_output(command))
    return answer


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1e3
    return 0.0


def main() -> None:
    """Run one action and print its peaks."""
    action, store, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _status_mb("RssAnon"))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ACTIONS[action](store, out)
    done.set()
    watcher.join()
    print(json.dumps({"anonymous": peak[0], "resident": _status_mb("VmHWM")}))


if __name__ == "__main__":
    main()
