"""How long a file takes to load, and its first run, in a fresh process whose runtime another file has loaded.

    python -m benchmarks.cold_start RUNTIME OTHER_FILE FILE

Prints one JSON object. FILE may be FILE#ENTRY. Importing a runtime in Python takes seconds, which no app waits
for: with the `solo` task of the runner they would hide what the file takes. exports.py calls start_cold().
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from maestro_edge.runtimes.runner import LOADERS, load_one


def start_cold(runtime: str, path: Path, other: Path) -> tuple[float, float]:
    """Milliseconds to load the file, and those of its first run."""
    command = [sys.executable, "-m", "benchmarks.cold_start", runtime, str(other), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.name} for {runtime}: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["load_ms"], found["first_ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=list(LOADERS))
    parser.add_argument("other")
    parser.add_argument("file")
    given = parser.parse_args()
    job: dict[str, Any] = {"runtime": given.runtime, "threads": 1, "seed": 0}
    load_one(job, given.other, LOADERS, None).run()
    begin = time.perf_counter()
    program = load_one(job, given.file, LOADERS, None)
    loaded = time.perf_counter()
    program.run()
    first = time.perf_counter()
    print(json.dumps({"load_ms": 1000 * (loaded - begin), "first_ms": 1000 * (first - loaded)}))


if __name__ == "__main__":
    main()
