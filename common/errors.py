"""The one exception that users see: a line that says what is wrong, in which file, and what to do."""

import errno
import sys
import traceback

NO_ROOM = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "write elsewhere",
           errno.EACCES: "check its rights"}  # fmt: skip
CRASHED = 70  # Python's own code for a crash is 1, which says that gates were missed


class InputError(Exception):
    """Wrong input or settings. The message names the file or option and the remedy, in one line."""


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
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard; --resume goes on", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in NO_ROOM:
            traceback.print_exc()
            return CRASHED
        print(f"error: {error.filename or 'a file'}: {error.strerror}; {NO_ROOM[error.errno]}", file=sys.stderr)
        return 2
