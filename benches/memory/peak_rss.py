#!/usr/bin/env python3
"""Peak memory of quantizing a synthetic sharded BF16 checkpoint that is much larger than the budget.

    cargo build --release -p safequant-cli
    benches/memory/peak_rss.py target/release/safequant

Prints one line of a table: VmHWM is the peak resident set (what `/usr/bin/time -v` calls "Maximum resident set size"); RssAnon and
RssFile are the largest values seen while polling /proc/<pid>/status. Standard library only, Linux. Exit status 1 if the peak is over
`--limit-mb`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "crash"))
import synthetic  # noqa: E402


def poll(job):
    """Largest values in kB of what the kernel says about a process."""
    peak = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}
    while job.poll() is None:
        try:
            with open("/proc/%d/status" % job.pid) as status:
                for line in status:
                    key, _, value = line.partition(":")
                    if key in peak:
                        peak[key] = max(peak[key], int(value.split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.01)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--scheme", default="W4A16")
    parser.add_argument("--convention", default="compressed-tensors")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--limit-mb", type=float, default=400.0)
    parser.add_argument("--source", help="a checkpoint to use, or a folder to create and keep")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.source or os.path.join(folder, "src")
        if not os.path.exists(source):
            synthetic.write(source, int(options.gigabytes * 1e9), 2 * 10**9, 4096, 14336, 32768)
        total = sum(os.path.getsize(os.path.join(source, name)) for name in os.listdir(source))
        command = [os.path.abspath(options.binary), "quantize", source, "-o", os.path.join(folder, "dst"),
                   "--scheme", options.scheme, "--convention", options.convention, "--memory", options.memory,
                   "--threads", options.threads, "--quiet"]
        started = time.monotonic()
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak = poll(job)
        seconds = time.monotonic() - started
        if job.returncode != 0:
            sys.exit("the job failed with %d" % job.returncode)
    mb = {key: value * 1024 / 1e6 for key, value in peak.items()}
    print("| source | scheme | --memory | threads | peak RSS | anonymous | file | time |")
    print("|---|---|---|---|---|---|---|---|")
    print("| %.1f GB BF16 | %s (%s) | %s | %s | %.0f MB | %.0f MB | %.0f MB | %.1f s |"
          % (total / 1e9, options.scheme, options.convention, options.memory, options.threads,
             mb["VmHWM"], mb["RssAnon"], mb["RssFile"], seconds))
    sys.exit(0 if mb["VmHWM"] <= options.limit_mb else 1)


if __name__ == "__main__":
    main()
