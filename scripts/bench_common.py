"""What bench-peers and bench-mount have in common: measuring, the programs, their stores and mounts, the report."""

import base64
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TIME = "/usr/bin/time"
MOUNT_LIMIT = 600  # seconds
READ_LIMIT = 4 * 3600


def note(text):
    """Tells on stderr what is going on; stdout is the report."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def output_of(*command, **options):
    """What a command prints; it must not fail."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout.strip()


def ran(command, environment=None, shown=None, **options):
    """Runs a command that must not fail, and returns what it printed."""
    command = list(map(str, command))
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    if done.returncode:
        raise Failed(f"{shown or ' '.join(command)}\nended with code {done.returncode}:\n{done.stderr}")
    return done


# --- Measuring ------------------------------------------------------------------------------------------------------


class Failed(SystemExit):
    """A command that failed, and what it said; ends the script with that unless it is caught."""


class Measure:
    """What one run of a command took."""

    def __init__(self, wall, cpu, peak_kib):
        self.wall, self.cpu, self.peak_kib = wall, cpu, peak_kib


def measured(command, environment=None, to_null=True, allowed=(0,)):
    """Runs a command under time(1). All earlier writes are flushed first, so that none pays for another's."""
    os.sync()
    with tempfile.NamedTemporaryFile("r") as figures, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        done = subprocess.run(
            [TIME, "-o", figures.name, "-f", "%U %S %M", *map(str, command)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if to_null else None,
            stderr=errors,
        )
        wall = time.perf_counter() - started
        if done.returncode not in allowed:
            errors.seek(0)
            raise Failed(f"{' '.join(map(str, command))}\nended with code {done.returncode}:\n{errors.read()}")
        user, system, peak_kib = figures.read().split()[-3:]
    return Measure(wall, float(user) + float(system), int(peak_kib))


def sizes(path):
    """Tells apparent bytes (each inode once) and bytes on disk."""
    apparent = int(output_of("du", "-s", "--apparent-size", "--block-size=1", str(path)).split()[0])
    on_disk = int(output_of("du", "-s", "--block-size=1", str(path)).split()[0])
    return apparent, on_disk


def rotated(programs, round_number):
    """The programs in another order for each round, so that none is always first."""
    at = round_number % len(programs)
    return programs[at:] + programs[:at]


# --- Reading --------------------------------------------------------------------------------------------------------


# What reads, in a process of its own that has loaded all it needs before its clock starts.
READER = """
import hashlib, json, random, sys, time, zipfile

def small(paths):
    total = 0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            total += len(file.read())
    return {"bytes": total}

def stream(paths):
    buffer, total = bytearray(1 << 20), 0
    with open(paths[0], "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return {"bytes": total}

def entries(paths, seed, count):
    started = time.perf_counter()
    with zipfile.ZipFile(paths[0]) as archive:
        found = archive.infolist()
        directory = time.perf_counter() - started
        chosen = random.Random(seed).sample(found, min(count, len(found)))
        return {"directory": directory, "bytes": sum(len(archive.read(entry)) for entry in chosen)}

def digests(paths):
    result = []
    for path in paths:
        with open(path, "rb") as file:
            result.append(hashlib.file_digest(file, "sha256").hexdigest())
    return {"digests": result}

job = json.load(sys.stdin)
started = time.perf_counter()
result = globals()[job.pop("what")](**job)
result["seconds"] = time.perf_counter() - started
print(json.dumps(result))
"""


def reader(what, root, names, **more):
    """Reads files below a root, and returns what was found, with the seconds it took."""
    job = json.dumps({"what": what, "paths": [f"{root}/{name}" for name in names], **more})
    command = [sys.executable, "-I", "-X", "utf8", "-c", READER]
    done = ran(command, shown=f"reading ({what})", input=job, timeout=READ_LIMIT)
    return json.loads(done.stdout)


def drop_caches():
    """Writes out what is to be written, and lets the kernel forget pages, names and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


# --- The programs ---------------------------------------------------------------------------------------------------


class Program:
    """A program that keeps copies of a tree. Each has a place of its own for what it keeps, caches included."""

    name = ""
    keeps_versions = True

    def __init__(self, work):
        self.home = work / "kept" / self.name.split()[0]
        self.store = self.home / "store"
        self.environment = {}

    def reset(self):
        """Begins anew with an empty store."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        self.create()

    def create(self):
        """Makes the empty store."""

    def checked(self, *command):
        """Runs a command in the program's environment; it must not fail."""
        ran(command, self.environment)

    def run(self, tree):
        """Keeps a tree, and measures that."""
        return measured(self.command(tree), self.environment)

    def command(self, tree):
        """The command that keeps a tree."""
        raise NotImplementedError

    @staticmethod
    def version():
        """The program's name and version."""
        raise NotImplementedError


class Zmreplica(Program):
    name = "zmreplica"
    binary = None

    def create(self):
        self.checked(self.binary, "-q", "--store", self.store, "init")

    def command(self, tree):
        return [self.binary, "-q", "--store", self.store, "snapshot", tree]

    @classmethod
    def version(cls):
        return output_of(cls.binary, "--version")


class Restic(Program):
    name = "restic"

    def create(self):
        self.environment = {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": str(self.home / "cache")}
        self.checked("restic", "-q", "-r", self.store, "init", "--repository-version", "2")

    def command(self, tree):
        return ["restic", "-q", "-r", self.store, "backup", "--ignore-ctime", tree]

    @staticmethod
    def version():
        return output_of("restic", "version").split(" compiled")[0]


class Borg(Program):
    name = "borg"
    count = 0

    def create(self):
        self.environment = {
            "BORG_BASE_DIR": str(self.home / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self.checked("borg", "init", "--encryption", "none", self.store)

    def command(self, tree):
        self.count += 1
        archive = f"{self.store}::{self.count}"
        return ["borg", "create", "--compression", "zstd,3", "--files-cache", "mtime,size,inode", archive, tree]

    @staticmethod
    def version():
        return output_of("borg", "--version")


class Rustic(Program):
    name = "rustic"

    def create(self):
        self.environment = {
            "RUSTIC_PASSWORD": "benchmark",
            "RUSTIC_NO_PROGRESS": "true",
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
        }
        self.checked("rustic", "--log-level", "error", "-r", self.store, "init", "--set-compression", "3")

    def command(self, tree):
        return ["rustic", "--log-level", "error", "-r", self.store, "backup", "--ignore-ctime", tree]

    @staticmethod
    def version():
        return output_of("rustic", "--version")


# --- Mounts ---------------------------------------------------------------------------------------------------------


def children():
    """The processes that this script started, and theirs, which come to it when their parents end; no zombies."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                parents[int(entry.name)] = (int(parent), state)
    ours, found = {os.getpid()}, True
    while found:
        found = {pid for pid, (parent, _) in parents.items() if parent in ours and pid not in ours}
        ours |= found
    return {pid for pid in ours - {os.getpid()} if parents[pid][1] != "Z"}


def is_mounted(point):
    """Whether something is mounted there; reads the kernel's table, not the mount, which may hang."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return str(point) in (line.split()[4].replace("\\040", " ") for line in lines)


class Mount:
    """A mount from the start of its command to the end of its processes."""

    def __init__(self, program, tree, point, log):
        self.program, self.tree, self.point, self.log = program, tree, point, log
        self.process = self.root = self.seconds = None
        self.problems = []

    def start(self):
        """Mounts, and measures until the tree's root has been listed in the mount."""
        self.point.mkdir()
        with open(self.log, "wb") as log:
            started = time.perf_counter()
            self.process = subprocess.Popen(
                list(map(str, self.program.mount_command(self.point))),
                env={**os.environ, **self.program.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # A call into a mount that hangs ends when its server does.
        watchdog = threading.Timer(MOUNT_LIMIT, lambda: self.kill(signal.SIGKILL))
        watchdog.start()
        try:
            while not self.answers():
                if self.process.poll() not in (None, 0) or time.perf_counter() - started > MOUNT_LIMIT:
                    raise Failed(f"its mount failed: {self.said()}")
                time.sleep(0.001)
            self.seconds = time.perf_counter() - started
        finally:
            watchdog.cancel()

    def answers(self):
        """Looks for the tree in the mount, and returns whether its root could be listed."""
        if not is_mounted(self.point):
            return False
        for inside in self.program.inside:
            root = f"{self.point}{inside.format(tree=self.tree.path)}"
            with contextlib.suppress(OSError):
                os.stat(root)
                if set(os.listdir(root)) == self.tree.top:
                    self.root = root
                    return True
        return False

    def said(self):
        """The end of what the mount command and its server wrote."""
        text = self.log.read_text(errors="replace").strip()[-1000:]
        code = self.process.poll()
        return f"{text or 'no message'} ({'still running' if code is None else f'code {code}'})"

    def memory(self):
        """The greatest resident sets of the server's processes, summed, in bytes."""
        total = 0
        for pid in children():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                total += sum(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return total

    def kill(self, number):
        """Ends what is left of the processes; all of them were started by this script."""
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ended(self, limit):
        """Waits for the processes to end."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            self.process.poll()
            # The only child that is not waited for elsewhere is a server that was left to this process.
            with contextlib.suppress(ChildProcessError):
                while self.process.returncode is not None and os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not children():
                return True
            time.sleep(0.005)
        return False

    def stop(self):
        """Takes the mount away, by force if need be, and ends its processes."""
        forced = [["umount", "-l", self.point], ["fusermount3", "-uz", self.point]]
        for command in [*[self.program.unmount_command(self.point)] * 3, *forced]:
            if not is_mounted(self.point):
                break
            try:
                ran(command, self.program.environment, timeout=60)
            except (Failed, OSError, subprocess.SubprocessError) as error:
                if is_mounted(self.point):
                    self.problems.append(f"not unmounted: {error}")
                    time.sleep(0.3)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process is None or self.ended(30):
                break
            self.problems.append(f"still running 30 s after it was unmounted: {sorted(children())}; sent signal {number}")
            self.kill(number)
        if self.process is not None and not self.ended(30) or is_mounted(self.point):
            self.problems.append("could not be ended")
        with contextlib.suppress(OSError):
            self.point.rmdir()


# --- Getting ready --------------------------------------------------------------------------------------------------


def apt_install(*packages):
    """Installs Debian packages if it can; whoever needs them looks whether they are there."""
    if not shutil.which("apt-get"):
        return
    as_root = [] if os.getuid() == 0 else ["sudo"]
    if as_root and not shutil.which("sudo"):
        return
    note(f"installing {', '.join(packages)}")
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run([*as_root, "apt-get", "-qq", "update"], check=False, **quiet)
    for package in packages:
        subprocess.run([*as_root, "apt-get", "-qq", "install", "-y", package], check=False, **quiet)


def build(options):
    """Builds zmreplica and zmtreegen unless it is given where they are."""
    if options.bin is None:
        note("building zmreplica")
        subprocess.run(["cargo", "build", "--release", "--locked", "--workspace", "--quiet"], cwd=PROJECT, check=True)
        options.bin = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")).absolute() / "release"
    Zmreplica.binary = options.bin.absolute() / "zmreplica"
    options.treegen = options.bin.absolute() / "zmtreegen"


def generate(options, *arguments):
    """Runs zmtreegen, and returns its summary."""
    return json.loads(output_of(str(options.treegen), "--json", *map(str, arguments)))


def large_zip(tree, file, size, seed):
    """Makes a zip of stored messages, as Zimbra does: the tree's own, again and again until the size is reached.

    Every other line's length of a message is noise in base64, as an attachment is: no two entries have much in common,
    and a message still compresses to about half.
    """
    inodes = {}
    for path in sorted(tree.rglob("*.msg*")):
        inodes.setdefault(path.lstat().st_ino, path)
    chosen = random.Random(seed).sample(list(inodes.values()), k=min(2000, len(inodes)))
    messages = [(path.name, path.read_bytes()) for path in chosen]
    if not messages:
        raise Failed(f"there are no messages in {tree}")
    file.parent.mkdir()
    number, line = 0, 76
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        while archive.fp.tell() < size:
            name, message = messages[number % len(messages)]
            body = bytearray(message)
            noise = base64.b64encode(random.Random(number).randbytes(len(body) * 3 // 4 + 3))
            for at in range(line, len(body), 2 * line):
                end = min(at + line, len(body))
                body[at:end] = noise[at:end]
            archive.writestr(zipfile.ZipInfo(f"{number:07d}-{name}", (2026, 8, 1, 1, 0, 0)), body)
            number += 1


def forget_settings():
    """Not the store nor the configuration of whoever runs this."""
    for name in [name for name in os.environ if name.startswith(("ZMREPLICA_", "RESTIC_", "BORG_", "RUSTIC_"))]:
        del os.environ[name]


def work_directory(options, stack):
    """Makes the directory for trees and stores; it goes with the stack unless it is to be kept."""
    parent = options.work or Path(os.environ.get("TMPDIR", "/var/tmp"))
    work = Path(tempfile.mkdtemp(prefix="zmreplica-bench.", dir=parent))
    if options.keep:
        note(f"working in {work}")
    else:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
    return work


# --- The report -----------------------------------------------------------------------------------------------------


def seconds(values, digits=2):
    """Median, and where there are several the least and the greatest."""
    values = list(values)
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def mib(size):
    """A size in MiB."""
    return f"{size / 2**20:,.1f}"


class Report:
    """What goes to stdout, and to a file if there is one."""

    def __init__(self, path):
        self.path, self.lines = path, []

    def add(self, *lines):
        """Adds lines."""
        self.lines += lines
        for line in lines:
            print(line, flush=True)
        # Written as it grows: an hour of measuring is not lost to the last part.
        if self.path:
            self.path.write_text("\n".join(self.lines) + "\n")

    def table(self, heads, rows):
        """Adds a table; all columns but the first are right-aligned."""
        self.add("", "| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1))
        for row in rows:
            self.add("| " + " | ".join(row) + " |")
        self.add("")


def machine(work):
    """Tells the machine, and the file system of the work directory."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    file_system = output_of("df", "--output=fstype", str(work)).splitlines()[-1]
    return (
        f"{os.cpu_count()} cores ({cpu[0].split(':')[1].strip() if cpu else platform.machine()}), "
        f"{int(memory.split()[1]) / 2**20:.0f} GiB of memory, Linux {platform.release()}, {file_system}"
    )


def made_by():
    """Returns the command line, the revision if it is known, and the day."""
    revision = ""
    with contextlib.suppress(Exception):
        revision = " at " + output_of("git", "-C", str(PROJECT), "rev-parse", "--short=12", "HEAD", stderr=subprocess.DEVNULL)
    command = " ".join([f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return f"Made by `{command}`{revision} on {time.strftime('%Y-%m-%d')}."
