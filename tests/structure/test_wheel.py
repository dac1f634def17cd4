"""The wheel holds the four packages, whole, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from configparser import ConfigParser
from email.parser import Parser
from zipfile import ZipFile

import pytest


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """The wheel, built from this checkout by the build back end itself: no network, no new environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def info(wheel, name):
    """Text of one file of the wheel's .dist-info folder."""
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_wheel_holds_exactly_the_four_packages(wheel, packages):
    tops = {path.partition("/")[0] for path in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(packages)


def test_wheel_misses_no_file_of_the_packages(wheel, packages, files):
    # Weights, tokenizer and probes are data: a pattern in .gitignore or in the build would drop them in silence.
    expected = set()
    for package, folder in packages.items():
        expected |= {path.relative_to(folder).as_posix() for path in files if path.is_relative_to(folder / package)}
        for link in (folder / package).rglob("*"):  # a linked folder (the page's samples) comes with what lies in it
            if link.is_symlink() and link.is_dir():
                inside = [path.relative_to(link.resolve()) for path in files if path.is_relative_to(link.resolve())]
                expected |= {(link.relative_to(folder) / path).as_posix() for path in inside}
    packed = {path for path in wheel.namelist() if ".dist-info/" not in path}
    assert packed == expected


def test_wheel_carries_licence_version_and_command(wheel, root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = Parser().parsestr(info(wheel, "METADATA"))
    assert metadata["Name"] == "introspect-mllm"
    assert metadata["Version"] == project["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert info(wheel, "licenses/LICENSE") == (root / "LICENSE").read_text(encoding="utf-8")
    commands = ConfigParser()
    commands.read_string(info(wheel, "entry_points.txt"))
    assert dict(commands["console_scripts"]) == {"introspect": "introspect_service.cli:app"}
