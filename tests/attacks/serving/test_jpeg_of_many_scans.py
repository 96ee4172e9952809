"""A progressive JPEG file of 143 KB in which a scan of 39 bytes is repeated thousands of times.

At 64f666f, nothing counted the scans, and the decoder passed over all 24 megapixels once for each
of them. Now a file with more than 100 scans is refused.
"""

import io

from PIL import Image

from .server import Server


def make(edge: int, repeats: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (edge, edge), (1, 2, 3)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    starts = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
    ends = [*starts[1:], len(content) - 2]
    scans = [content[start:end] for start, end in zip(starts, ends, strict=True)]
    return content[:-2] + min(scans[1:], key=len) * repeats + content[-2:]


def test_file_of_many_scans_is_refused_at_once(server: Server) -> None:
    status, answer = server.predict(make(4900, 3000), "cat")
    assert (status, "scans" in answer["detail"]) == (400, True)
    assert server.predict(make(500, 50), "cat")[0] == 200
