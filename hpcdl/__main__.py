"""`python -m hpcdl`: the same as the `hpcdl` command."""

from hpcdl.cli import main

if __name__ == "__main__":
    main()
