"""`python -m oomguard` is `oomguard`."""

from oomguard.cli.main import run

if __name__ == "__main__":
    run()
