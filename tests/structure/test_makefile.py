"""What `make` does on a fresh machine, with a Python that writes down what it is asked instead of installing it.

The installation itself is what CI runs; here are the decisions around it.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

RECORDER = """#!/bin/sh
case "$*" in
  *" venv "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; echo "venv" >> "{log}";;
  *" install "*) shift 5; echo "$*" >> "{log}";;
esac
"""


@pytest.fixture
def make(root, tmp_path):
    """Runs make in a folder that holds only what make reads; returns the finished process."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--no-print-directory", *arguments]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # none of make's own variables, should make run the tests
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def steps(make, tmp_path):
    """Runs make with the recording Python; returns what it was asked to do in this run."""
    log, python = tmp_path / "log", tmp_path / "recorder"
    python.write_text(RECORDER.format(log=log), encoding="utf-8")
    python.chmod(0o755)

    def run(*arguments: str) -> list[str]:
        log.write_text("", encoding="utf-8")
        done = make(f"PYTHON={python}", *arguments)
        assert done.returncode == 0, done.stderr
        return log.read_text(encoding="utf-8").splitlines()

    return run


def test_torch_goes_first_and_the_extra_only_where_it_is_needed(steps):
    assert steps("install") == ["venv", "torch==2.13.0", "--editable ."]
    assert steps("install-dev") == ["--editable .[dev]"]


def test_a_second_start_installs_nothing(steps):
    steps("install-dev")
    assert steps("install-dev") == []
    assert steps("install") == []


def test_changed_dependencies_are_installed_again(steps, tmp_path):
    steps("install")
    later = (tmp_path / ".venv" / "installed").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "pyproject.toml", ns=(later, later))
    assert steps("install") == ["--editable ."]


def test_the_choice_of_torch_is_kept_and_a_new_one_starts_over(steps):
    assert steps("install", "TORCH=torch --index-url URL") == ["venv", "torch --index-url URL", "--editable ."]
    assert steps("install") == []
    assert steps("install", "TORCH=torch>=2.11") == ["venv", "torch>=2.11", "--editable ."]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param('case "$1" in -c) exit 1;; *) echo "Python 3.9.2";; esac', "is Python 3.9.2", id="too old"),
        pytest.param('case "$2" in *venv*) exit 1;; esac', "sudo apt install python3-venv", id="no venv"),
        pytest.param(None, "is not found", id="no Python"),
    ],
)
def test_what_is_missing_is_said_in_one_line_with_its_remedy(make, tmp_path, script, said):
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        python.chmod(0o755)
    done = make("run", f"PYTHON={python}")
    message, failed = done.stderr.splitlines()
    assert done.returncode != 0
    assert said in message
    assert "make run" in message
    assert failed.startswith("make: ***")
    assert not (tmp_path / ".venv").exists()
