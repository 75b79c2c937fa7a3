"""The one exception that users see: a line that says what is wrong, in which file, and what to do."""

import sys


class InputError(Exception):
    """Wrong input or settings. The message names the file or option and the remedy, in one line."""


def run_script(main, argv=None) -> int:
    """Exit code of `main(argv)`: an InputError becomes one line on stderr and code 2, unless --debug asks for all."""
    argv = sys.argv[1:] if argv is None else argv
    if "--debug" in argv:
        return main(argv) or 0
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard; --resume goes on", file=sys.stderr)
        return 130
