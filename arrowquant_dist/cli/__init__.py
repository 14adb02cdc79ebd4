"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from arrowquant_dist.cli.program import app, main

__all__ = ["app", "main"]
