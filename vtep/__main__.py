"""`python -m vtep` is `pyvtep`."""

from vtep.cli import main

if __name__ == "__main__":
    main()
