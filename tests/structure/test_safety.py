"""Nothing is unpickled, ever, and no library prints."""

from __future__ import annotations

import ast

PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load"}
PICKLED_FILES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"}


def pickling(tree):
    """Lines that import a pickler or call a function that unpickles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            names = {ast.unparse(node.func)}
        else:
            continue
        if names & (PICKLERS | PICKLING_CALLS):
            yield node.lineno


def test_no_module_pickles(modules):
    assert [f"{name}:{line}" for name, module in modules.items() for line in pickling(module.tree)] == []


def test_the_search_finds_picklers():
    source = (
        "import pickle\nfrom torch import load\nimport numpy as np\nnp.load('x')\ntorch.save(x, y)\njson.load(f)\nfrom json import load\n"
    )
    assert list(pickling(ast.parse(source))) == [1, 2, 4, 5]


def test_no_pickled_file_is_kept(files, root):
    assert [str(path.relative_to(root)) for path in files if path.suffix in PICKLED_FILES] == []


def test_no_library_prints(modules):
    wrong = [
        f"{name}:{node.lineno}"
        for name, module in modules.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "pprint", "breakpoint"}
    ]
    assert wrong == []
