"""The entry point of `python -m vtep` and of the command `pyvtep`."""

import sys


def main() -> None:
    """Run the command line.

    The imports are inside the function, so that Ctrl-C ends the program without a traceback even
    while they are carried out.
    """
    try:
        from vtep.cli import bootstrap  # noqa: PLC0415

        bootstrap.block_signals()
        bootstrap.keep_single_threaded()
        bootstrap.disable_collector()
        from vtep.cli import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
