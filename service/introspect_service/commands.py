"""Subcommands, and what is said where one cannot do what was asked, or the extra that it needs is not installed."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

OF_PROBES = ("mapie", "matplotlib", "pyarrow", "scipy", "sklearn")
"""What the extra `probes` brings and serving does without."""

PARTS = ("introspect", "introspect_kernels", "introspect_probes", "introspect_service")
"""The packages whose errors are messages to the user."""


class Commands(TyperGroup):
    """A command's group that ends in a line, not a traceback, on an error of ours and where a module of an extra is missing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as problem:
            if (problem.name or "").partition(".")[0] not in OF_PROBES:
                raise
            fail(f"{problem.name} is missing: pip install 'introspect-mllm[probes]'")
        except Exception as problem:
            if type(problem).__module__.partition(".")[0] not in PARTS:
                raise
            fail(str(problem))


def fail(message: str) -> NoReturn:
    """Say what is wrong and what to do, and end the command with status 1."""
    typer.echo(f"introspect: {message}", err=True)
    raise typer.Exit(1)
