"""The subprocess that opens HDF5 files: a damaged file may crash it or exhaust its memory without affecting the parent.

It imports nothing from this project, so that it starts in a fraction of a second. Its input is lines of JSON:
``{"path", "points", "beside"}`` requests a description of the arrays with these names in a file, ``true`` then their
contents in order. Its output is a line of JSON for each request, and the bytes.
"""

import json
import sys
from typing import Any, BinaryIO


def answer(asked: dict[str, Any], line_in: BinaryIO, out: BinaryIO) -> None:
    """Describe the arrays of a file, and send them if requested."""
    import h5py
    import numpy as np

    with h5py.File(asked["path"], "r") as file:
        names = list(file.keys())
        wanted = next((name for name in asked["points"] if name in names), None)
        wanted = names[0] if wanted is None and len(names) == 1 else wanted
        chosen = [wanted, *(name for name in names if name in asked["beside"] and name != wanted)]
        arrays = [file[name] for name in chosen] if wanted is not None else []
        described = []
        for name, array in zip(chosen, arrays, strict=False):
            problem = ""
            if not isinstance(array, h5py.Dataset) or array.shape is None:
                problem = "is no array of numbers"
            elif array.external or array.is_virtual:
                problem = "stands in other files, which are not opened"
            shape, kind = ([], "") if problem else (list(array.shape), array.dtype.str)
            if not problem and array.dtype.names:
                kind = array.dtype.descr
            if not problem and array.dtype.hasobject:
                problem = "is no array of numbers"
            described.append({"name": name, "shape": shape, "kind": kind, "problem": problem})
        _say(out, {"names": names[:100], "arrays": described})
        if json.loads(line_in.readline() or b"false"):
            contents = [
                np.ascontiguousarray(array[()]).reshape(-1) for array in arrays
            ]  # raises for damaged data
            _say(out, {})
            for content in contents:
                out.write(content.view(np.uint8).data)
            out.flush()


def serve(memory: int) -> None:
    """Serve requests until the input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except ImportError:  # Windows
        pass
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        if isinstance(asked, dict):
            try:
                answer(asked, sys.stdin.buffer, sys.stdout.buffer)
            except Exception as error:
                _say(sys.stdout.buffer, {"error": str(error).split("\n")[0][:200] or type(error).__name__})


def _say(out: BinaryIO, what: dict[str, Any]) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
