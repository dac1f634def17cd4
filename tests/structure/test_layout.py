"""The layout that DESIGN.md lays down, and what no committed file may hold."""

from __future__ import annotations

import ast
import re

#: Folders of one machine. Left of them no letter, so that addresses such as /v1/work/ pass.
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|farm|Users|opt/(wheels|pypi))/")

#: Hosts of package registries, in two pieces, so that this file does not name them.
REGISTRIES = [
    ".".join(pieces)
    for pieces in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("npmjs", "org"),
        ("debian", "org"),
        ("proxy.golang", "org"),
        ("crates", "io"),
        ("conda.anaconda", "org"),
    ]
]


def text_of(path):
    """The file's text, or none where it is binary."""
    content = path.read_bytes()
    return None if b"\0" in content else content.decode("utf-8")


def test_the_four_folders_are_not_packages(packages):
    # A folder kernels/ that is a package breaks transformers where Hugging Face's `kernels` is installed.
    assert [str(folder) for folder in packages.values() if (folder / "__init__.py").exists()] == []


def test_each_folder_holds_one_package_and_no_other_module(packages, files):
    # In an editable installation each folder is on sys.path: a module beside the package could be imported by anyone.
    for package, folder in packages.items():
        inside = [path.relative_to(folder) for path in files if path.is_relative_to(folder)]
        assert (folder / package / "__init__.py").is_file()
        assert [str(path) for path in inside if len(path.parts) == 1 and path.suffix == ".py"] == []
        assert [str(path) for path in inside if path.name == "__init__.py" and path.parts[0] != package] == []


def test_each_package_says_that_it_is_typed(packages):
    assert [package for package, folder in packages.items() if not (folder / package / "py.typed").is_file()] == []


def test_every_module_says_what_it_is(modules):
    wrong = [name for name, module in modules.items() if not (ast.get_docstring(module.tree) or "").strip()]
    assert wrong == []


def test_no_file_knows_the_machine_it_was_written_on(files, root):
    wrong = [
        f"{path.relative_to(root)}:{number}"
        for path in files
        for number, line in enumerate((text_of(path) or "").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert wrong == []


def test_no_file_names_a_package_registry(files, root):
    wrong = [f"{path.relative_to(root)}: {host}" for path in files for host in REGISTRIES if host in (text_of(path) or "")]
    assert wrong == []


def test_the_patterns_above_find_what_they_are_for():
    assert MACHINE_PATH.search("open('" + "/wor" + "k/main/x')")
    assert not MACHINE_PATH.search("GET /v1/work/items")
    assert REGISTRIES[0] == "pypi" + "." + "org"
