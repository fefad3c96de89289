"""Handles of files as a server of NFS keeps them.

handles.py save ROOT FILE   remembers the handle of everything below ROOT, and what it is
handles.py test ROOT FILE   opens the handles and prints how many lead to the same thing, to nothing, and to another thing
"""
import ctypes, errno, hashlib, os, pickle, stat, sys

libc = ctypes.CDLL(None, use_errno=True)


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def check(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def handle_of(path):
    handle, mount = Handle(128), ctypes.c_int()
    check(libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return handle.type, bytes(handle.data)[: handle.bytes]


def described(fd):
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        return "directory", status.st_ino, tuple(sorted(os.listdir(fd)))
    return "file", status.st_ino, hashlib.sha1(os.read(fd, 1 << 20)).hexdigest()


def opened(mount, kind, data):
    handle = Handle(len(data), kind)
    ctypes.memmove(handle.data, data, len(data))
    try:
        fd = check(libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.ESTALE, error
        return None
    try:
        return described(fd)
    finally:
        os.close(fd)


what, root, saved = sys.argv[1:]
if what == "save":
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                fd = os.open(path, os.O_RDONLY)
                found[path] = handle_of(path), described(fd)
                os.close(fd)
    with open(saved, "wb") as out:
        pickle.dump(found, out)
    print(len(found))
else:
    with open(saved, "rb") as file:
        found = pickle.load(file)
    mount = os.open(root, os.O_RDONLY)
    counts = {"same": 0, "stale": 0, "other": 0}
    # Not in the order in which they were seen.
    for path, (handle, before) in sorted(found.items(), reverse=True):
        now = opened(mount, *handle)
        outcome = "stale" if now is None else "same" if now == before else "other"
        counts[outcome] += 1
        if outcome == "other":
            print(path, before, now, file=sys.stderr)
    print(counts["same"], counts["stale"], counts["other"])
