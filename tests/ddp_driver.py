"""Started by torchrun: several trainings in one process group, so that the libraries are imported once a process.

usage: ddp_driver.py FILE, a JSON list of train.py's arguments, one list a training.
"""

import json
import sys
from pathlib import Path


def main():
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    import train
    from common.engine import device as devices

    stop, devices.stop_processes = devices.stop_processes, lambda: None
    for argv in json.loads(Path(sys.argv[1]).read_text()):
        train.main(argv)
    stop()


if __name__ == "__main__":
    main()
