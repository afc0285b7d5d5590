"""A program for `fuzz` whose mistake is that it believes its input: a file with a number."""

import sys
from pathlib import Path

if __name__ == "__main__":
    print(int(Path(sys.argv[1]).read_text()))
