"""Runs every benchmark, or those named, and prints one table: `python -m benchmarks [NAME]...`."""

from __future__ import annotations

import argparse
import json
import pkgutil
import subprocess
import sys
from importlib import import_module

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.line import say


def names() -> list[str]:
    """Modules that measure something: those with a `main`."""
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__"]
    return [name for name in found if hasattr(import_module(f"benchmarks.{name}"), "main")]


def main() -> int:
    """Exit status 0 unless a benchmark failed to run; whether its claims hold is in the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    chosen = parser.parse_args().names or names()
    table = Table("benchmark", "claim", "value", "unit", "goal", "holds")
    failed = []
    for name in chosen:
        say(f"running benchmarks.{name}")
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            continue
        for claim in json.loads(done.stdout.splitlines()[-1])["claims"]:
            value = f"{claim['value']:.4g}"
            table.add_row(name, claim["name"], value, claim["unit"], claim["goal"], "yes" if claim["holds"] else "no")
    Console().print(table)
    for name in failed:
        say(f"error: benchmarks.{name} did not run; see its messages above")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
