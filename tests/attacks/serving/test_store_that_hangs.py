"""A store that does not answer: a named pipe in place of a record waits for a writer.

Look-ups shared the decoders' threads. At 64f666f, a few requests for that head stopped the answers
for all others, also those of heads in memory. Now reads of the store have threads of their own and
a deadline, and a pipe is not read. The study ``hanging_store`` measures it with a proxy that hangs.
"""

import os
import time

from headkit.benchmarks.studies.http_client import encode_form

from .server import SECONDS, Server, photo


def test_heads_in_memory_are_answered(server: Server) -> None:
    record = server.folder / "store" / "heads" / "hanging" / "1.json"
    record.parent.mkdir()
    os.mkfifo(record)
    body, kind = encode_form(photo(), ["hanging"])
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    sockets = [server.connect() for _ in range(2 * (os.cpu_count() or 1) + 40)]
    try:
        for one in sockets:
            one.sendall(request)
        time.sleep(2)  # a name that is known is looked up again
        assert server.seconds("cat") < SECONDS / 3
        assert server.ask("GET", "/heads")[0] == 200
        assert server.predict(photo(), "hanging")[0] == 503
    finally:
        for one in sockets:
            one.close()
        record.unlink()
        record.parent.rmdir()
