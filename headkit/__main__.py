"""Entry point of the command ``headkit``. An error is one line on stderr, with exit status 2."""

from __future__ import annotations

import sys
import warnings

from headkit.adapters.display import escape_lines
from headkit.adapters.errors import DependencyMissing, HeadkitError, OutputError
from headkit.adapters.files import reason_of
from headkit.streams import close_output, open_streams


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv[1:]
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore", UserWarning)  # torch warns about its own conversion
    open_streams()
    try:
        _run()
    except BrokenPipeError:  # as ``head`` leaves it
        close_output()
        sys.exit(1)
    except (HeadkitError, ValueError) as error:
        if isinstance(error, OutputError):
            close_output()
        if debug:
            raise
        print(escape_lines(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # the disk, a limit of the system, or a folder that has gone
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(escape_lines(f"error: {place}{reason_of(error)}"), file=sys.stderr)
        sys.exit(2)


def _run() -> None:
    try:
        from headkit.cli.app import app
    except ImportError as missing:
        if missing.name not in ("typer", "rich"):
            raise
        raise DependencyMissing.for_feature("the command line", "typer rich") from missing
    try:
        app()
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


if __name__ == "__main__":
    main()
