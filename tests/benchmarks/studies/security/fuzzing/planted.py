"""A worker with planted faults: its commands say what an input does."""

import ctypes
import json
import sys
import time


def main() -> None:
    print("{}", flush=True)
    for line in sys.stdin:
        print("{}", flush=True)
        what = line.split()[-1]
        held = []
        answer = {"result": what, "seconds": 0.0, "mb": 0.0, "error": ""}
        if what == "sleep":
            time.sleep(60)
        elif what == "spin":
            while True:
                pass
        elif what == "grow":
            while True:
                held.append(b"x" * 20_000_000)
        elif what == "die":
            ctypes.string_at(0)
        elif what == "report":  # a peak that nobody saw from outside
            answer |= {"result": "accepted", "mb": 5000.0}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
