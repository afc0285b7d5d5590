"""A job for campaigns that is over in a moment; some forms of it lose what they should keep.

Run as ``tiny_job.py FORM --workdir=DIRECTORY``, it makes files in ``DIRECTORY/checkpoints``, one
after the other, and resumes behind the last. Forms: ``good``; ``forgetful`` writes something else
after a restart; ``unflushed`` doesn't flush contents; ``careless`` goes on when it can't write;
``unlocked`` lets another run into its directory, and both write what differs by process.
"""

import fcntl
import os
import sys
import time
from pathlib import Path

FORM, DIRECTORY = sys.argv[1], Path(sys.argv[2].partition("=")[2])
FILES = 40


def flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.writing")
    partial.write_text(text)
    if FORM != "unflushed":
        flush(partial)
    partial.rename(path)
    flush(path.parent)


def main() -> None:
    checkpoints = DIRECTORY / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    flush(DIRECTORY)
    with (DIRECTORY / ".lock").open("w") as lock:
        if FORM != "unlocked":
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in checkpoints.glob("*.writing"):
            path.unlink()
        restarted = any(checkpoints.iterdir())
        seed = restarted if FORM == "forgetful" else os.getpid() if FORM == "unlocked" else 0
        for number in range(1, FILES + 1):
            path = checkpoints / f"{number:08d}"
            if path.exists():
                path.read_text()
                continue
            time.sleep(0.005)
            try:
                write(path, f"{int(seed)}, {number}\n" * 20)
            except OSError:
                if FORM != "careless":
                    raise


try:
    main()
except BlockingIOError:
    print("error: in use by another run", file=sys.stderr)
    sys.exit(2)
except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
