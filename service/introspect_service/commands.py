"""Subcommands, and what is said where the extra that one needs is not installed."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

OF_PROBES = ("mapie", "matplotlib", "pyarrow", "scipy", "sklearn")
"""What the extra `probes` brings and serving does without."""


class Commands(TyperGroup):
    """A command's group that names the extra behind a missing module instead of ending in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as problem:
            if (problem.name or "").partition(".")[0] not in OF_PROBES:
                raise
            fail(f"{problem.name} is missing: pip install 'introspect-mllm[probes]'")


def fail(message: str) -> NoReturn:
    """Say what is wrong and what to do, and end the command with status 1."""
    typer.echo(f"introspect: {message}", err=True)
    raise typer.Exit(1)
