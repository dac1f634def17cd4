"""One arm of the CPU study in a process of its own, for its peak memory: `python -m introspect_probes.cpu_memory ARM PROMPT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

NEW = 8


def main(arm: str, prompt: int) -> None:
    """Write one line of JSON: bytes resident before the answer (model and libraries), at its peak, and the difference.

    Linux only: it is the one that can forget a peak.
    """
    from introspect_probes.cpu_study import run_arm

    run = run_arm(arm, prompt, NEW)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak from here on (man 5 proc)
    before = _peak()
    run()
    sys.stdout.write(json.dumps({"loaded_bytes": before, "peak_bytes": _peak(), "answer_bytes": _peak() - before}) + "\n")


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
