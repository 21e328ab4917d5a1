#!/usr/bin/env python3
"""Kills a quantizing job at random moments and resumes it; the result must equal that of an undisturbed run.

    cargo build --release -p safequant-cli
    benches/crash/kill_resume.py target/release/safequant

Also: Ctrl-C (SIGINT), a full disk (a small tmpfs, if this user may mount one), and after each of them no destination.
Standard library only. Exit status 0 if everything held.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import synthetic

PARTIAL = ".dst.safequant-partial"


def tree(directory):
    """Digest of every file by name."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


class Harness:
    def __init__(self, binary, folder, options):
        self.binary, self.folder, self.options = binary, folder, options
        self.failures = []

    def path(self, name):
        return os.path.join(self.folder, name)

    def command(self, destination, *more):
        return [self.binary, "quantize", self.path("src"), "-o", destination, "--scheme", self.options.scheme,
                "--convention", self.options.convention, "--memory", self.options.memory, "--quiet",
                "--max-shard-size", self.options.shard, *more]

    def finish(self, destination, *more):
        return subprocess.run(self.command(destination, *more), capture_output=True, text=True)

    def fail(self, text):
        self.failures.append(text)
        print("FAILED: " + text)

    def interrupt(self, destination, seconds, how):
        """Starts a job and sends it a signal; gives its exit status and what it said."""
        job = subprocess.Popen(self.command(destination), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        job.send_signal(how)
        _, said = job.communicate()
        return job.returncode, said

    def resumes(self, what, good):
        """Resumes and compares; leaves the folder as it was."""
        dst = self.path("dst")
        done = self.finish(dst, "--resume")
        ok = True
        if done.returncode != 0:
            # A kill that came after the publication leaves nothing to resume: the destination must be complete.
            ok = os.path.exists(dst) and not os.path.exists(self.path(PARTIAL))
            if not ok:
                self.fail("%s: resuming gave %d: %s" % (what, done.returncode, done.stderr.strip()))
        if ok and tree(dst) != good:
            ok = False
            self.fail("%s: the result differs" % what)
        if os.path.exists(self.path(PARTIAL)):
            ok = False
            self.fail("%s: partial work is left" % what)
        for name in ("dst", PARTIAL):
            shutil.rmtree(self.path(name), ignore_errors=True)
        return ok


def kills(harness, good, seconds, n, seed):
    rng = random.Random(seed)
    n_ok, n_partial, n_before = 0, 0, 0
    for i in range(n):
        moment = rng.uniform(0.0, seconds)
        harness.interrupt(harness.path("dst"), moment, signal.SIGKILL)
        what = "kill %d after %.3f s" % (i, moment)
        if os.path.exists(harness.path("dst")):
            if tree(harness.path("dst")) != good:
                harness.fail(what + ": a torn destination")
        elif os.path.exists(harness.path(PARTIAL)):
            n_partial += 1
        else:
            n_before += 1
        n_ok += harness.resumes(what, good)
    print("kill -9: %d of %d equal to the undisturbed run (%d left partial work, %d came before it, %d after the result)"
          % (n_ok, n, n_partial, n_before, n - n_partial - n_before))


def control_c(harness, good, seconds):
    status, said = harness.interrupt(harness.path("dst"), seconds / 2, signal.SIGINT)
    if status == 0:
        harness.fail("Ctrl-C: the job ended before it")
    if status < 0:
        harness.fail("Ctrl-C: died of signal %d" % -status)
    if os.path.exists(harness.path("dst")):
        harness.fail("Ctrl-C: there is a destination")
    if "--resume" not in said:
        harness.fail("Ctrl-C: the message does not say how to go on: " + said)
    ok = harness.resumes("Ctrl-C", good)
    print("Ctrl-C: exit %d, %r, resumed: %s" % (status, said.strip().splitlines()[-1:], ok))


def full_disk(harness, need):
    mount = harness.path("small")
    os.makedirs(mount)
    sizes = [need * percent // 100 for percent in (2, 50, 90, 99)]
    for size in sizes:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d" % size, "tmpfs", mount], capture_output=True)
        if done.returncode != 0:
            print("full disk: skipped, this user may not mount a tmpfs (tests/rewrite/faults.rs covers it)")
            return
        try:
            done = harness.finish(os.path.join(mount, "dst"))
            left = os.listdir(mount)
        finally:
            subprocess.run(["umount", mount], check=True)
        said = done.stderr.strip()
        if done.returncode != 3 or left or " needed, " not in said or " free" not in said:
            harness.fail("full disk of %d bytes: exit %d, left %s: %s" % (size, done.returncode, left, said))
        print("full disk of %d bytes: exit %d, nothing left: %s, %r" % (size, done.returncode, not left, said))
    # The check before the first byte sees those; a disk that fills up *during* the job must be clean too.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d" % (need + (64 << 20)), "tmpfs", mount], check=True)
    try:
        job = subprocess.Popen(harness.command(os.path.join(mount, "dst")), stderr=subprocess.PIPE, text=True)
        hog = os.path.join(mount, "hog")
        try:
            with open(hog, "wb", buffering=0) as out:
                while job.poll() is None:
                    out.write(bytes(1 << 20))
        except OSError:
            pass
        _, said = job.communicate()
        left = [name for name in os.listdir(mount) if name != "hog"]
    finally:
        subprocess.run(["umount", mount], check=True)
    if job.returncode != 3 or left:
        harness.fail("filled during the job: exit %d, left %s: %s" % (job.returncode, left, said.strip()))
    print("filled during the job: exit %d, nothing left: %s, %r" % (job.returncode, not left, said.strip()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--scheme", default="W4A16")
    parser.add_argument("--convention", default="compressed-tensors")
    parser.add_argument("--memory", default="64MiB")
    parser.add_argument("--shard", default="20MB")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    options.binary = os.path.abspath(options.binary)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        harness = Harness(options.binary, folder, options)
        total = synthetic.write(harness.path("src"), options.megabytes * 10**6, 60 * 10**6, 1024, 2816)
        before = tree(harness.path("src"))
        started = time.monotonic()
        done = harness.finish(harness.path("good"))
        seconds = time.monotonic() - started
        if done.returncode != 0:
            sys.exit("the undisturbed run failed: " + done.stderr)
        good = tree(harness.path("good"))
        need = sum(os.path.getsize(os.path.join(harness.path("good"), name)) for name in good)
        print("undisturbed: %.0f MB to %.0f MB in %.2f s, %d files, scheme %s (%s)"
              % (total / 1e6, need / 1e6, seconds, len(good), options.scheme, options.convention))
        kills(harness, good, seconds, options.kills, options.seed)
        control_c(harness, good, seconds)
        full_disk(harness, need)
        if tree(harness.path("src")) != before:
            harness.fail("the source was changed")
        sys.exit(1 if harness.failures else 0)


if __name__ == "__main__":
    main()
