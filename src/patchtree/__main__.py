"""`python -m patchtree`: the command line."""

from patchtree.cli import main

if __name__ == "__main__":
    main()
