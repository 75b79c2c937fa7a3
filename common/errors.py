"""The one exception that users see: a line that says what is wrong, in which file, and what to do."""

import errno
import re
import sys
import traceback

NO_ROOM = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "write elsewhere",
           errno.EACCES: "check its rights", errno.EMFILE: "raise ulimit -n, or give --workers 0",
           errno.ENOMEM: "free some memory, or give fewer --workers"}  # fmt: skip
NO_SHARED_MEMORY = ("loader processes found no shared memory left to send a batch through (/dev/shm is full); give "
                    "--workers 0, or more of it (docker run --shm-size 8g), or remove what fills /dev/shm")  # fmt: skip
LOST_REMEDY = ("what is finished is kept: the same call goes on, train.py with --resume; where memory is short, fewer "
               "--workers or 0 take less of it")  # fmt: skip
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: [\w ]+|exited unexpectedly)"
)
LONGEST = 1200
CRASHED = 70  # Python's own code for a crash is 1, which says that gates were missed


class InputError(Exception):
    """Wrong input or settings. The message names the file or option and the remedy, in one line.

    What a file says of itself may be of any length: the middle of a message of more than LONGEST letters is left out.
    """

    def __init__(self, message: str):
        half, (trace, mark, said) = LONGEST // 2, message.rpartition(FROM_WORKER)
        super().__init__(trace + mark + (said if len(said) <= LONGEST else f"{said[:half]} … {said[-half:]}"))


FROM_WORKER = f"{InputError.__module__}.InputError: "  # ends the traceback of a loader process, before its line


def run_script(main, argv=None) -> int:
    """Exit code of `main(argv)`: an InputError becomes one line on stderr and code 2, unless --debug asks for all.

    So does a disk that is full or must not be written, wherever a library meets it. Any other error is a fault of ours:
    its traceback, and CRASHED.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--debug" in argv:
        return main(argv) or 0
    try:
        return main(argv) or 0
    except InputError as error:
        said = str(error).rpartition(FROM_WORKER)[2]
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard; --resume goes on", file=sys.stderr)
        return 130
    except Exception as error:
        said = explained(error)
        if said is None:
            traceback.print_exc()
            return CRASHED
        print(f"error: {said}", file=sys.stderr)
        return 2


def is_lost_worker(error: BaseException) -> bool:
    """Whether that is torch's word of a loader process that died. It may be raised wherever the main process is."""
    return isinstance(error, RuntimeError) and bool(LOST_WORKER.match(str(error)))


def explained(error: Exception) -> str | None:
    """The line for what a machine does to any program: no room, no rights, no shared memory, a process killed. None for
    any other error."""
    said = str(error)
    if "shared memory" in said or "Bus error" in said:  # a worker dies of the latter where memory is given on use
        return NO_SHARED_MEMORY
    if is_lost_worker(error):
        pids, how = LOST_WORKER.match(said).groups()
        return f"loader process {pids.strip(' ,')} {how.strip()}; {LOST_REMEDY}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.filename or 'this machine'}: {error.strerror}; {NO_ROOM[error.errno]}"
    return None
