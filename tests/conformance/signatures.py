"""Signatures of a library, read from its source text: nothing of it is imported, so it may be the build for GPUs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

Parameters = list[str]
"""As in `def`, one entry each: `name`, `name=` with a default, `*`, `/`, `*rest`, `**more`."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.AnnAssign | ast.Assign | ast.Module
WITH_FIELDS = {"BaseModel", "Struct", "TypedDict", "NamedTuple", "DeepSpeedConfigModel"}
"""Base classes that make a constructor of the fields."""


class Missing(Exception):
    """A library has no such name."""


class Library:
    """The source text of a package."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        """Take the folder of each top-level package."""
        self._roots = dict(roots)

    def parameters(self, name: str) -> Parameters | None:
        """Parameters of a function, method or class; None for what is not called.

        Raises:
            Missing: there is no such name.
        """
        scope, node = self.find(name)
        if isinstance(node, ast.ClassDef):
            return self._constructor(scope, node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if "property" in _decorators(node):
                return None
            bound = "." in name and self._is_method(name) and "staticmethod" not in _decorators(node)
            return parameters_of(node.args, drop_first=bound)
        return None

    def find(self, name: str) -> tuple[str, Definition]:
        """The module and the definition of a full name.

        Raises:
            Missing: there is no such name.
        """
        module, rest = self._module_of(name)
        scope, node = module, self._tree(module)
        for part in rest:
            found = self._member(scope, node, part)
            if found is None:
                raise Missing(f"{name}: {scope} has no {part}")
            scope, node = found
        return scope, node

    def fields(self, name: str) -> set[str]:
        """Fields of a class and its bases, with their aliases."""
        scope, node = self.find(name)
        assert isinstance(node, ast.ClassDef)
        found: set[str] = set()
        for _, cls in self._lineage(scope, node):
            for field in _fields(cls):
                found |= {field.target.id, *_aliases(field.value)}  # type: ignore[union-attr]
        return found

    def text(self, module: str) -> str:
        """Source text of a module."""
        return self._path(module).read_text(encoding="utf-8")  # type: ignore[union-attr]

    # modules -----------------------------------------------------------------------------------------------------

    def _path(self, module: str) -> Path | None:
        top, *parts = module.split(".")
        if top not in self._roots:
            return None
        base = self._roots[top].joinpath(*parts)
        files = (base / "__init__.py", base / "__init__.pyi", base.with_suffix(".py"), base.with_suffix(".pyi"))
        return next((path for path in files if path.is_file()), None)

    @cache  # noqa: B019 (lives as long as the program)
    def _tree(self, module: str) -> ast.Module:
        return ast.parse(self.text(module))

    def _module_of(self, name: str) -> tuple[str, list[str]]:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            if self._path(".".join(parts[:count])) is not None:
                return ".".join(parts[:count]), parts[count:]
        raise Missing(f"{name}: no such package")

    # names inside ------------------------------------------------------------------------------------------------

    def _member(self, scope: str, node: Definition, part: str) -> tuple[str, Definition] | None:
        if isinstance(node, ast.Module):
            return self._global(scope, part)
        if isinstance(node, ast.ClassDef):
            return self._attribute(scope, node, part)
        return (scope, node)  # what is inside a value cannot be seen

    def _global(self, module: str, part: str) -> tuple[str, Definition] | None:
        stars: list[str] = []
        found: tuple[str, Definition] | None = None
        for node in ast.walk(self._tree(module)):
            if isinstance(node, ast.ImportFrom):
                source = _absolute(module, node, is_package=self._path(module).name.startswith("__init__"))  # type: ignore[union-attr]
                for alias in node.names:
                    if alias.name == "*":
                        stars.append(source)
                    elif (alias.asname or alias.name) == part and found is None:
                        found = self._found(f"{source}.{alias.name}")
        for node in _toplevel(self._tree(module)):
            if _names(node) == part:
                return module, node
        if found is not None:
            return found
        if target := _lazy(self._tree(module), part):
            return self._found(f"{module}{target.replace(':', '.')}")
        if function := _asked_for(self._tree(module), part):
            return module, function
        if self._path(f"{module}.{part}") is not None:
            return f"{module}.{part}", self._tree(f"{module}.{part}")
        return next((hit for star in stars if (hit := self._found(f"{star}.{part}"))), None)

    def _found(self, name: str) -> tuple[str, Definition] | None:
        try:
            return self.find(name)
        except Missing:
            return None

    def _attribute(self, scope: str, node: ast.ClassDef, part: str) -> tuple[str, Definition] | None:
        for where, cls in self._lineage(scope, node):
            for child in ast.walk(cls):
                if _names(child) == part and child is not cls:
                    return where, child  # type: ignore[return-value]
        return None

    def _lineage(self, scope: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
        """The class and its bases, as far as they are in the library."""
        yield scope, node
        for base in node.bases:
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            found = self._found(f"{scope}.{name}")
            if found is not None and isinstance(found[1], ast.ClassDef):
                yield from self._lineage(found[0], found[1])

    def _is_method(self, name: str) -> bool:
        return isinstance(self.find(name.rpartition(".")[0])[1], ast.ClassDef)

    def _constructor(self, scope: str, node: ast.ClassDef) -> Parameters:
        lineage = list(self._lineage(scope, node))
        bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for _, cls in lineage for base in cls.bases}
        decorated = any({"dataclass", "config"} & _decorators(cls) for _, cls in lineage)
        for _, cls in lineage:
            for method in cls.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return parameters_of(method.args, drop_first=True)
        if not decorated and not bases & WITH_FIELDS:
            return ["*args", "**kwargs"]
        fields: dict[str, bool] = {}
        for _, cls in reversed(lineage):
            for field in _fields(cls):
                fields[field.target.id] = field.value is not None or "TypedDict" in bases  # type: ignore[union-attr]
        return [f"{name}=" if has_default else name for name, has_default in fields.items()]


def parameters_of(arguments: ast.arguments, *, drop_first: bool) -> Parameters:
    """The parameters of a `def`; `drop_first` leaves out self or cls."""
    found = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    for index in range(len(found) - len(arguments.defaults), len(found)):
        found[index] += "="
    if arguments.posonlyargs:
        found.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        found.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        found.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(argument.arg if default is None else f"{argument.arg}=")
    if arguments.kwarg:
        found.append(f"**{arguments.kwarg.arg}")
    return found[1:] if drop_first and found and not found[0].startswith("*") else found


def schema_parameters(schema: str) -> Parameters:
    """The parameters of an operator of torch from its schema, `name(Tensor a, *, float? scale=None) -> Tensor`."""
    inside = schema[schema.index("(") + 1 : schema.index(") ->")]
    found: Parameters = []
    for part in inside.split(", "):
        words = part.split(" ")
        name, has_default, _ = words[-1].partition("=")
        found.append("*" if part == "*" else f"{name}=" if has_default else name)
    return found


def signature(parameters: Parameters) -> inspect.Signature:
    """Make a signature of parameters, to bind arguments to."""
    source = ", ".join(f"{entry}0" if entry.endswith("=") else entry for entry in parameters)
    try:
        node = ast.parse(f"lambda {source}: 0", mode="eval").body
    except SyntaxError:  # fields with defaults before fields without: keyword arguments, as in a struct
        node = ast.parse(f"lambda *, {source}: 0", mode="eval").body
    assert isinstance(node, ast.Lambda)
    return inspect.signature(eval(compile(ast.Expression(node), "<parameters>", "eval")))


def _toplevel(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements of a module, those below `if` and `try` included."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop(0)
        yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            pending.extend(ast.iter_child_nodes(node))


def _names(node: ast.AST) -> str | None:
    """The name that a statement defines: a variable, an attribute of self, a function or a class."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name
    target = node.target if isinstance(node, ast.AnnAssign) else None
    if isinstance(node, ast.Assign):
        target = node.targets[0]
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        return target.attr
    return None


def _fields(cls: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    for node in cls.body:
        is_field = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if is_field and "ClassVar" not in ast.unparse(node.annotation):
            yield node


def _aliases(value: ast.expr | None) -> set[str]:
    if not isinstance(value, ast.Call):
        return set()
    return {str(k.value.value) for k in value.keywords if k.arg == "alias" and isinstance(k.value, ast.Constant)}


def _decorators(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list}


def _lazy(tree: ast.Module, part: str) -> str | None:
    """Where `vllm/__init__.py` imports a name from when it is asked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _names(node) == "MODULE_ATTRS" and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == part and isinstance(value, ast.Constant):
                    return str(value.value)
    return None


def _asked_for(tree: ast.Module, part: str) -> ast.AnnAssign | None:
    """A value that `__getattr__` of a module makes when its name is asked for."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    texts = [inner.value for node in functions for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    if part not in texts:
        return None
    return ast.AnnAssign(target=ast.Name(part), annotation=ast.Name("Any"), value=None, simple=1)


def _absolute(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)
