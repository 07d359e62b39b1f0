"""`python -m mipo_exp`: see `cli`."""

from mipo_exp.cli import main

if __name__ == "__main__":
    main()
