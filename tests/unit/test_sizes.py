"""A file that grows past a few hundred lines has a second noun in it, a long function a second thought."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("curriculum", "actors", "reward", "learner", "evaluation", "cluster", "examples")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
"""From `def` to the end, docstring not counted."""

LONG_FILES = {
    "learner/engine.py": (520, "one method per collective call of a rank, and the accumulation between them"),
}
LONG_FUNCTIONS = {
    "actors/engine.py:VLLMEngine.__init__": (50, "one call of vLLM with all its arguments"),
    "evaluation/data_card.py:card_markdown": (44, "one page of text"),
    "learner/attention/flash.py:attend_backward": (41, "one formula for two devices"),
}


def product_files():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def file_lines():
    return {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in product_files()}


def function_lines():
    sizes = {}
    for path in product_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node in functions(tree):
            sizes[f"{path.relative_to(ROOT).as_posix()}:{name}"] = lines_without_docstring(node)
    return sizes


def functions(node, prefix=""):
    """Functions at any depth, named as in a traceback."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(child, ast.ClassDef):
                yield prefix + child.name, child
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def lines_without_docstring(function):
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is None:
        return lines
    return lines - (function.body[0].end_lineno - function.body[0].lineno + 1)


@pytest.mark.parametrize(
    ("sizes", "limit", "exceptions"),
    [
        pytest.param(file_lines, MAX_FILE_LINES, LONG_FILES, id="files"),
        pytest.param(function_lines, MAX_FUNCTION_LINES, LONG_FUNCTIONS, id="functions"),
    ],
)
def test_nothing_is_longer_than_its_limit_and_no_exception_is_idle(sizes, limit, exceptions):
    found = sizes()
    own = {name: lines for name, (lines, _) in exceptions.items()}
    too_long = {name: lines for name, lines in found.items() if lines > own.get(name, limit)}
    assert not too_long, f"longer than {limit} lines or than their own limit: split them"
    idle = [name for name in own if found.get(name, 0) <= limit]
    assert not idle, f"no longer than {limit} lines, or gone: remove their exceptions"


def test_a_docstring_does_not_count_and_nested_functions_count_on_their_own():
    docstring = '"""One.\n\n        Two."""'
    source = f"class A:\n    def outer(self):\n        {docstring}\n\n        def inner():\n            return 1\n"
    sizes = {name: lines_without_docstring(node) for name, node in functions(ast.parse(source))}
    assert sizes == {"A.outer": 4, "A.outer.inner": 2}
