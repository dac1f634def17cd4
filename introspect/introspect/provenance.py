"""Where a measured number comes from: commit, versions, machine, arguments, date."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("introspect-mllm", "torch", "transformers", "triton", "numpy", "scikit-learn")


def provenance() -> dict[str, object]:
    """Facts to store beside every result: git commit, package versions, machine, argv and UTC time.

    Facts that cannot be had (no git, a package not installed) are left out.
    """
    import torch

    facts: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "arguments": [Path(sys.argv[0]).name, *(_without_folders(argument) for argument in sys.argv[1:])],
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        facts["commit"] = commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
    return facts


def _without_folders(argument: str) -> str:
    """An argument as given, but of an absolute path its last part only: results are for others' machines too."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed program, our own arguments
            ["git", *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
