# A warm worker: calls the functions that the daemon names, one after another, in the sandbox that it was started in.
#
# Started as `python -c THIS CONFIG` with a socket to the daemon as stdin. A frame is four bytes of length, little endian, and
# that many bytes of JSON; a descriptor beside a request becomes the call's stdin. Everything that a call has written when its
# reply is sent belongs to it. The daemon believes nothing of what is said here. Python 3.8 or later, standard library only.
import sys

if sys.version_info < (3, 8):
    sys.exit("Python 3.8 or later is needed, and this is " + sys.version.split()[0])

import _socket
import _thread
import importlib
import json
import os
import resource
import signal

CONFIG = json.loads(sys.argv[1])
PATH = CONFIG["paths"] + sys.path
PID = os.getpid()
MESSAGE_MAX = 1000

sys.argv[:] = [""]
sys.path[:] = PATH
sock = _socket.socket(fileno=os.dup(0))
NULL = os.open("/dev/null", os.O_RDWR)
os.dup2(NULL, 0)
ANCILLARY = _socket.CMSG_SPACE(4)


class Refused(Exception):
    """The call itself is wrong: another attempt cannot help."""


# ---- Streams: descriptors 1 and 2 and Python's objects around them, put back after each call.


def text_stream(fd, mode):
    return open(fd, mode, encoding="utf-8", errors="surrogateescape", newline="\n", closefd=False)


streams = {
    "stdin": text_stream(0, "r"),
    "stdout": text_stream(1, "w"),
    "stderr": open(2, "w", 1, "utf-8", "backslashreplace", "\n", False),
}
sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr = streams.values()
# What 0, 1 and 2 are between calls.
KEPT = {0: NULL, 1: os.dup(1), 2: os.dup(2)}
KEPT_STAT = {fd: os.fstat(fd)[:3] for fd in KEPT}
c_library = None
modules_seen = len(sys.modules)


def flush(stream):
    try:
        stream.flush()
        return not stream.closed
    except (OSError, ValueError, AttributeError):
        return False


def is_foreign(module):
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.endswith(".so") and "lib-dynload" not in file


def flush_c():
    """Extensions may have printed through the C library, which keeps what it has not written."""
    global c_library, modules_seen
    if c_library is None and len(sys.modules) != modules_seen:
        modules_seen = len(sys.modules)
        if "ctypes" in sys.modules or any(map(is_foreign, list(sys.modules.values()))):
            import ctypes

            c_library = ctypes.CDLL(None)
            modules_seen = len(sys.modules)
    if c_library is not None:
        c_library.fflush(None)


def restore_streams():
    for name, stream in streams.items():
        current = getattr(sys, name, None)
        if current is not stream:
            flush(current)
            setattr(sys, name, stream)
            setattr(sys, "__" + name + "__", stream)
    good = flush(streams["stdout"]), flush(streams["stderr"])
    flush_c()
    for fd, kept in KEPT.items():
        try:
            same = os.fstat(fd)[:3] == KEPT_STAT[fd]
        except OSError:
            same = False
        if not same:
            os.dup2(kept, fd)
    # A stream that cannot be flushed still holds something, which is not to come out later.
    return all(good)


def open_stdin(fd=None):
    if fd is not None:
        os.dup2(fd, 0)
        os.close(fd)
    streams["stdin"] = sys.stdin = sys.__stdin__ = text_stream(0, "r")


# ---- What a call finds: variables, directory, scratch space.

environment = dict(os.environ)
# What os.environ holds inside: compared as it is, which takes a tenth of the time.
raw = getattr(os.environ, "_data", None)
raw_seen = dict(raw) if raw is not None else None
scratch = {}


# System V objects of the sandbox, which may be its own only.
objects = []


def look(directory):
    stat = os.stat(directory)
    return stat.st_mtime_ns, stat.st_mode, os.listxattr(directory)


for directory, _ in CONFIG["scratch"]:
    scratch[directory] = look(directory)
if CONFIG["scratch"]:
    for kind in ("shm", "msg", "sem"):
        try:
            objects.append(os.open("/proc/sysvipc/" + kind, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass


def left_objects():
    # Each file begins with a line of headings.
    return any(os.pread(fd, 4096, 0).count(b"\n") > 1 for fd in objects)


def set_environment(variables):
    """The job's variables and this call's, and no others, whatever earlier calls have set."""
    global raw_seen
    changed = {name: value for name, value in variables.items() if environment.get(name) != value}
    environment.update(changed)
    if raw is None or raw != raw_seen:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        changed = environment
    if changed:
        os.environ.update(changed)
        raw_seen = dict(raw) if raw is not None else None


def empty(directory):
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            import shutil

            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def restore_scratch():
    for directory, may_empty in CONFIG["scratch"]:
        if look(directory) != scratch[directory]:
            if not may_empty:
                return False
            empty(directory)
            if look(directory)[1:] != scratch[directory][1:]:
                return False
            scratch[directory] = look(directory)
    return True


def is_alone():
    """Whether the call left neither a thread of Python nor a child."""
    if _thread._count() > 0:
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return False
    except ChildProcessError:
        return True


# ---- Parameters in CBOR (RFC 8949), in their shortest form, as the daemon has checked.


def from_cbor(data):
    value, end = cbor_item(data, 0)
    if end != len(data):
        raise ValueError("bytes follow")
    return value


def cbor_item(data, at):
    """The value that begins at a place, and where it ends."""
    kind, info = data[at] >> 5, data[at] & 31
    size = 0 if info < 24 else 1 << (info - 24)
    if info > 27:
        raise ValueError("a value without a length")
    at, head = at + 1 + size, data[at + 1 : at + 1 + size]
    number = int.from_bytes(head, "big") if size else info
    if kind == 0:
        return number, at
    if kind == 1:
        return -1 - number, at
    if kind in (2, 3):
        part = data[at : at + number]
        if len(part) != number:
            raise ValueError("an end too early")
        return (part if kind == 2 else part.decode("utf-8")), at + number
    if kind == 4:
        items = []
        for _ in range(number):
            item, at = cbor_item(data, at)
            items.append(item)
        return items, at
    if kind == 5:
        entries = {}
        for _ in range(number):
            key, at = cbor_item(data, at)
            entries[key], at = cbor_item(data, at)
        return entries, at
    if kind == 6:
        item, at = cbor_item(data, at)
        if number not in (2, 3) or not isinstance(item, bytes):
            raise ValueError("tag %d" % number)
        large = int.from_bytes(item, "big")
        return (large if number == 2 else -1 - large), at
    if size > 1:
        import struct

        return struct.unpack({2: ">e", 4: ">f", 8: ">d"}[size], head)[0], at
    return {20: False, 21: True, 22: None, 23: None}[number], at


def parameters(request):
    if "cbor" not in request:
        return request["params"]
    import binascii

    try:
        return from_cbor(binascii.a2b_base64(request["cbor"]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Refused("the parameters cannot be read: %s" % (error,))


# ---- Calls.


def load(name):
    # The job's files may have come after an earlier look.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        if name == error.name or name.startswith(error.name + "."):
            where = ", ".join(CONFIG["paths"]) or "the standard library and what is installed"
            raise Refused("there is no module `%s`; looked in %s" % (error.name, where))
        raise Refused("module `%s` needs the module `%s`, which this node lacks" % (name, error.name))


def find(call):
    name, _, attribute = call.partition(":")
    module = sys.modules.get(name) or load(name)
    function = getattr(module, attribute, None)
    if function is None:
        raise Refused("module `%s` (%s) has no function `%s`" % (name, getattr(module, "__file__", "built in"), attribute))
    if not callable(function):
        raise Refused("`%s` is no function" % call)
    return function


def run(request, feeds):
    function, params = find(request["call"]), parameters(request)
    try:
        value = function(**params)
    except TypeError as error:
        # Raised by the call and not below it: it never came to run.
        if error.__traceback__.tb_next is None:
            raise Refused("the parameters do not fit `%s`: %s" % (request["call"], error))
        raise
    if feeds:
        return put_lines(request["call"], value)
    if value is None:
        return
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("what `%s` returned is no JSON: %s" % (request["call"], error))
    path = os.path.join(request["env"]["SINEW_OUTPUT"], "result.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def put_lines(call, value):
    """A mapper's or reducer's lines: printed, or yielded as lines or as pairs of key and value."""
    if value is None:
        return
    if not hasattr(value, "__next__"):
        raise Refused("`%s` returned a %s: mappers and reducers print or yield lines" % (call, type(value).__name__))
    for line in value:
        if isinstance(line, tuple) and len(line) == 2:
            line = "%s\t%s" % line
        streams["stdout"].write("%s\n" % (line,))


def show(error):
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    try:
        traceback.print_exception(type(error), error, trace, file=streams["stderr"])
    except Exception:
        os.write(2, b"the traceback could not be written\n")


def attempt(request, feeds):
    """Runs the call; how it ended, its exit status, and what is to be said of it."""
    try:
        run(request, feeds)
        return "done", 0, ""
    except Refused as refused:
        return "refused", 1, str(refused)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return "exited", (end.code or 0) & 0xFF, ""
        print(end.code, file=streams["stderr"])
        return "exited", 1, ""
    except BaseException as error:
        show(error)
        return "raised", 1, "%s: %s" % (type(error).__name__, error)


def serve(request, stdin):
    set_environment(request["env"])
    os.chdir(CONFIG["work"])
    if sys.path != PATH:
        sys.path[:] = PATH
    if stdin is not None:
        open_stdin(stdin)
    end, code, message = attempt(request, stdin is not None)
    if os.getpid() != PID:
        # A child that the function forked and let return.
        restore_streams()
        os._exit(code)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.umask(0o022)
    usable = restore_streams()
    if stdin is not None:
        open_stdin()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        usable = usable and is_alone() and restore_scratch() and not left_objects()
    except OSError:
        usable = False
    usable = usable and peak <= CONFIG["rss_kib_max"]
    message = message[:MESSAGE_MAX].encode("utf-8", "replace").decode("utf-8")
    return {"end": end, "code": code, "message": message, "usable": usable, "peak_rss_kib": peak}


# ---- The daemon.


def receive():
    data, ancillary, _, _ = sock.recvmsg(65536, ANCILLARY)
    stdin = int.from_bytes(ancillary[0][2][:4], sys.byteorder) if ancillary else None
    while len(data) < 4:
        data += more(4 - len(data))
    frame = bytearray(data[4:])
    size = int.from_bytes(data[:4], "little")
    while len(frame) < size:
        frame += more(size - len(frame))
    return json.loads(frame), stdin


def more(size):
    data = sock.recv(min(size, 1 << 20))
    if not data:
        os._exit(0)
    return data


def answer(reply):
    payload = json.dumps(reply).encode("ascii")
    sock.sendall(len(payload).to_bytes(4, "little") + payload)


def main():
    while True:
        request, stdin = receive()
        reply = serve(request, stdin) if "call" in request else {"end": "done", "message": sys.version.split()[0], "usable": True}
        try:
            answer(reply)
        except OSError:
            os.write(2, b"the function closed the worker's connection\n")
            os._exit(1)


main()
