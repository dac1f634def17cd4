"""INTROSPECT_REQUIRE_ALL turns skips into failures: shown on a suite of its own, run with this project's conftest.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

SUITE = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip("nothing to see")

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    raise ValueError

@pytest.mark.gpu
def test_gpu_kernel():
    pytest.skip("no GPU either")
"""
MODULE = 'import pytest\npytest.importorskip("a_module_that_is_not_there")\n'


@pytest.fixture
def suite(root, tmp_path):
    """Runs the suite with INTROSPECT_REQUIRE_ALL set or not; returns exit code and output."""
    shutil.copy(root / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: as in the project\n", encoding="utf-8")

    def run(required: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
        environment = os.environ | {"INTROSPECT_REQUIRE_ALL": required}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout

    return run


def test_skips_are_allowed_by_default(suite):
    code, output = suite("0")
    assert code == 0
    assert "1 passed, 2 skipped, 1 xfailed" in output


def test_skips_fail_where_all_is_required(suite):
    code, output = suite("1")
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in output
    assert "INTROSPECT_REQUIRE_ALL is set and this was skipped. Skipped: nothing to see" in output


def test_a_module_that_skips_itself_fails_where_all_is_required(suite, tmp_path):
    (tmp_path / "test_module.py").write_text(MODULE, encoding="utf-8")
    assert suite("0")[0] == 0
    code, output = suite("1")
    assert code == 2
    assert "a_module_that_is_not_there" in output
