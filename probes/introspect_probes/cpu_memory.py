"""One arm of the CPU study in a process of its own, for its peak memory: `python -m introspect_probes.cpu_memory ARM PROMPT...`."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

NEW = 6


def main(arm: str, prompts: Sequence[int]) -> None:
    """Write a line of JSON for each length of prompt: bytes resident before the answer (model and libraries), at its peak, the difference.

    Linux only: it is the one that can forget a peak.
    """
    from introspect_probes.cpu_study import load_arm

    made = load_arm(arm)
    made(min(prompts), 2)()  # what is made once, at the first answer, belongs to none
    for prompt in prompts:
        run = made(prompt, NEW)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what an earlier answer has freed is not resident any more
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak from here on (man 5 proc)
        before = _peak()
        run()
        peak = _peak()
        row = {"prompt": prompt, "loaded_bytes": before, "peak_bytes": peak, "answer_bytes": peak - before}
        sys.stdout.write(json.dumps(row) + "\n")


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], [int(prompt) for prompt in sys.argv[2:]])
