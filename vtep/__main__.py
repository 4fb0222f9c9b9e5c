"""`python -m vtep` is `pyvtep`."""

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it without a traceback even while it is being loaded."""
    try:
        from vtep.cli import bootstrap  # noqa: PLC0415

        bootstrap.block_signals()
        from vtep.cli import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
