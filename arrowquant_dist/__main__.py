"""`python -m arrowquant_dist` is the program `arrowquant`."""

from arrowquant_dist.cli import main

if __name__ == "__main__":
    main()
