"""Runs every module of this folder that has a `main()`, or those named on the command line."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench


def run(names: list[str]) -> None:
    for info in pkgutil.iter_modules(bench.__path__):
        if info.name != "__main__" and (not names or info.name in names):
            module = importlib.import_module(f"bench.{info.name}")
            if hasattr(module, "main"):
                module.main()
                print()


if __name__ == "__main__":
    run(sys.argv[1:])
