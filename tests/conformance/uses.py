"""What the product uses of vLLM, DeepSpeed and torch's part for GPUs, found in its source text.

Names are followed through imports and through assignments of a name to another (`_aten: Any = torch.ops.aten`). What an
object is cannot be seen in the text: `OBJECTS` says it for the expressions that hold objects of a library.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("curriculum", "actors", "reward", "learner", "evaluation", "cluster")

FOLLOWED = (
    "vllm",
    "deepspeed",
    "torch.accelerator",
    "torch.cuda",
    "torch.distributed",
    "torch.nn.attention",
    "torch.ops.aten",
    "torch._C",
)
"""Names below these are checked. The rest of torch runs on a CPU as well, where the tests call it."""

ZERO3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
ASYNC_LLM = "vllm.v1.engine.async_llm.AsyncLLM"
OBJECTS = {
    ("actors/engine.py", "self._engine"): ASYNC_LLM,
    ("actors/engine.py", "engine"): ASYNC_LLM,
    ("actors/engine.py", "self._engine.output_processor"): "vllm.v1.engine.output_processor.OutputProcessor",
    ("actors/engine.py", "self._engine.vllm_config.cache_config"): "vllm.config.cache.CacheConfig",
    ("actors/engine.py", "output"): "vllm.outputs.CompletionOutput",
    ("actors/engine.py", "reply"): "vllm.outputs.RequestOutput",
    ("actors/weights/tensors.py", "options"): "torch.distributed.ProcessGroupNCCL.Options",
    ("learner/engine.py", "self._engine"): "deepspeed.runtime.engine.DeepSpeedEngine",
    ("learner/engine.py", "zero"): ZERO3,
    ("learner/engine.py", "self._zero_optimizer"): ZERO3,
    ("learner/zero3/shard.py", "zero"): ZERO3,
    ("learner/zero3/shard.py", "self._zero"): ZERO3,
}
"""(file, expression) -> class of the object that it holds there."""

OWN_METHODS = {"LearnerTransferEngine.receive_weights"}
"""Methods that a subclass of a library's class adds; all others of such a class override one of its base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One place where the product names something of a library."""

    where: str
    """File and line."""
    name: str
    """Full name, `vllm.SamplingParams`."""
    positional: int | None = None
    """Positional arguments of a call; None where it is none, or where a `*` hides their number."""
    keywords: tuple[str, ...] = ()
    """Keyword arguments of a call."""
    is_call: bool = False
    overrides: ast.arguments | None = None
    """Parameters of a method of ours that overrides the named one."""


@cache
def product_sources() -> tuple[tuple[str, str], ...]:
    """Path below the root, and text, of every file of the product."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


@cache
def product_uses() -> list[Use]:
    """Everything in the product that a library must have."""
    return [use for file, text in product_sources() for use in uses_in(file, text)]


def uses_in(file: str, text: str) -> list[Use]:
    """Uses in the text of one file."""
    tree = ast.parse(text)
    names = _Names(file, tree)
    found = [use for node in ast.walk(tree) for use in names.uses(node)]
    return [use for use in found if is_followed(use.name)]


def is_followed(name: str) -> bool:
    """Whether a full name lies below one of `FOLLOWED`, and is more than a module of it."""
    return any(name.startswith(f"{prefix}.") for prefix in FOLLOWED)


def dotted(node: ast.AST) -> str | None:
    """The text of `a.b.c`; None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


class _Names:
    """What the names of one file stand for."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self._file = file
        self._known: dict[str, str] = {expression: name for (f, expression), name in OBJECTS.items() if f == file}
        self._callees = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        self._inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            self._learn_import(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                full = self.full(node.value)
                if isinstance(target, ast.Name) and full is not None:
                    self._known.setdefault(target.id, full)

    def _learn_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                self._known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full(self, node: ast.AST) -> str | None:
        """The full name of an expression, by its longest known beginning."""
        text = dotted(node)
        if text is None:
            return None
        parts = text.split(".")
        for count in range(len(parts), 0, -1):
            known = self._known.get(".".join(parts[:count]))
            if known is not None:
                return ".".join([known, *parts[count:]])
        return None

    def uses(self, node: ast.AST) -> Iterator[Use]:
        if isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.ClassDef):
            yield from self._overrides(node)
        elif isinstance(node, ast.Attribute | ast.Name) and id(node) not in self._callees | self._inner:
            full = self.full(node)
            if full is not None:
                yield Use(where=self._where(node), name=full)

    def _call(self, node: ast.Call) -> Iterator[Use]:
        full = self.full(node.func)
        if full is None:
            return
        keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
        if full == "torch.mm" and "out_dtype" in keywords:
            full = "torch.ops.aten.mm.dtype"  # the overload that GPUs alone have
        yield Use(
            where=self._where(node),
            name=full,
            positional=_count(node.args),
            keywords=keywords,
            is_call=True,
        )

    def _overrides(self, node: ast.ClassDef) -> Iterator[Use]:
        for base in node.bases:
            full = self.full(base.value if isinstance(base, ast.Subscript) else base)
            if full is None or not is_followed(full):
                continue
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)]
            for method in methods:
                if not method.name.startswith("_") and f"{node.name}.{method.name}" not in OWN_METHODS:
                    yield Use(where=self._where(method), name=f"{full}.{method.name}", overrides=method.args)

    def _where(self, node: ast.expr | ast.stmt) -> str:
        return f"{self._file}:{node.lineno}"


def _count(arguments: list[ast.expr]) -> int | None:
    """Number of positional arguments; of `*` it knows tuples, and `map` over a tuple."""
    count = 0
    for argument in arguments:
        if not isinstance(argument, ast.Starred):
            count += 1
            continue
        value = argument.value
        if isinstance(value, ast.Call) and dotted(value.func) == "map" and len(value.args) == 2:
            value = value.args[1]
        if not isinstance(value, ast.Tuple | ast.List):
            return None
        count += len(value.elts)
    return count


# private names ---------------------------------------------------------------------------------------------------

PRIVATE_OBJECTS = (ZERO3,)
"""Classes without a documented attribute."""
PRIVATE_MODULES = ("vllm.v1.", "vllm.model_executor.")
"""Modules without a documented name."""
OF_PYTHON = {"_exit", "_replace"}
"""Documented, whatever they look like."""
PRIVATE_PREFIXES = ("ds_", "fp16_", "fp32_")
"""Attributes with which DeepSpeed marks parameters, and those of its optimizers."""


def private_names() -> dict[str, set[str]]:
    """Every name that a library does not document, with the files that use it."""
    sources = dict(product_sources())
    trees = {file: ast.parse(text) for file, text in sources.items()}
    own = {name for tree in trees.values() for node in ast.walk(tree) for name in _defined(node)}
    found: dict[str, set[str]] = {}
    for file, text in sources.items():
        for use in uses_in(file, text):
            if use.name.startswith(PRIVATE_MODULES):
                found.setdefault(_outermost(use.name), set()).add(file)
            for path in PRIVATE_OBJECTS:
                if use.name.startswith(f"{path}."):
                    found.setdefault(use.name.removeprefix(f"{path}.").partition(".")[0], set()).add(file)
        for node in ast.walk(trees[file]):
            for name in _private(node):
                if name not in own | OF_PYTHON:
                    found.setdefault(name, set()).add(file)
    return found


def _outermost(name: str) -> str:
    """The class or function of a full name, without what is inside it."""
    classes = [i for i, part in enumerate(name.split(".")) if part[0].isupper()]
    return ".".join(name.split(".")[: classes[0] + 1]) if classes else name


def _private(node: ast.AST) -> Iterator[str]:
    """Names in a node that begin like private ones."""
    if isinstance(node, ast.Attribute) and _looks_private(node.attr):
        yield node.attr
    elif isinstance(node, ast.Call) and dotted(node.func) in ("getattr", "setattr", "hasattr"):
        for argument in node.args[1:2]:
            if isinstance(argument, ast.Constant) and _looks_private(str(argument.value)):
                yield str(argument.value)
    elif isinstance(node, ast.ImportFrom) and any(map(_looks_private, (node.module or "").split("."))):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _looks_private(name: str) -> bool:
    return name.startswith(PRIVATE_PREFIXES) or (name.startswith("_") and not name.startswith("__"))


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a node of our own code defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            yield node.attr
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
