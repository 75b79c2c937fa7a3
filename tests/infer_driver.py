"""Started by torchrun with any number of processes: several calls of infer.py, so that libraries are imported once.

usage: infer_driver.py FILE, a JSON list of infer.py's arguments, one list a call.
"""

import json
import sys
from pathlib import Path


def main():
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    import infer
    from common.engine import device as devices

    stop, devices.stop_processes = devices.stop_processes, lambda: None
    for argv in json.loads(Path(sys.argv[1]).read_text()):
        infer.main(argv)
        devices.barrier()  # scenes are shared without a word: nobody begins the next call while one is at work
    stop()


if __name__ == "__main__":
    main()
