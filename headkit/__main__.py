"""Entry point of the command ``headkit``. An error is one line on stderr, with exit status 2."""

from __future__ import annotations

import io
import sys
import warnings

from headkit.adapters.display import escape_lines
from headkit.adapters.errors import DependencyMissing, HeadkitError


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv[1:]
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore", UserWarning)  # torch warns about its own conversion
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # pipes on Windows may lack a character
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            from headkit.cli.app import app
        except ImportError as missing:
            if missing.name not in ("typer", "rich"):
                raise
            raise DependencyMissing.for_feature("the command line", "typer rich") from missing
        app()
    except (HeadkitError, ValueError) as error:
        if debug:
            raise
        print(escape_lines(f"error: {error}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
