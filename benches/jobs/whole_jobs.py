#!/usr/bin/env python3
"""Whole jobs beside `cp` of the same bytes, in one run: wall, CPU and anonymous memory, as ratios.

    cargo build --release -p safequant-cli
    benches/jobs/whole_jobs.py target/release/safequant --rounds 5
    benches/jobs/whole_jobs.py target/release/safequant --rounds 3 --cold
    benches/jobs/whole_jobs.py target/release/safequant --peers env/bin/python --llama-quantize llama-quantize

Every round runs, job by job, first the yardstick and then the job: `cp` and `sync` of the source's files for quantizing, of the
result's for dequantizing. Medians over the rounds; ratios are medians of the rounds' ratios. `sync` is that of the files alone
(fsync), which is what the job does too. CPU is user and system time of the processes; what kernel threads do is in neither.
Anonymous memory is RssAnon, polled every 5 ms. With `--cold` the files that are read are dropped from the page cache before each
measurement, and `cp` is timed without `sync` beside that with it. With `--peers` or `--llama-quantize` the jobs of other programs
(peer_jobs.py; the interpreter given has llm-compressor and mlx_lm) run beside ours of the same kind instead. Standard library
only, Linux.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "crash"))
import synthetic  # noqa: E402

# Name, arguments behind the verb, and what is read: the dense source, or the result of an earlier line.
JOBS = [
    ("quantize FP8_BLOCK", ["quantize", "--scheme", "FP8_BLOCK"], "source"),
    ("quantize FP8_DYNAMIC", ["quantize", "--scheme", "FP8_DYNAMIC"], "source"),
    ("quantize W4A16", ["quantize", "--scheme", "W4A16"], "source"),
    ("dequantize FP8_BLOCK", ["dequantize"], "quantize FP8_BLOCK"),
    ("dequantize W4A16", ["dequantize"], "quantize W4A16"),
]

# Whose, our arguments, and theirs.
PEERS = [
    ("llm-compressor model_free_ptq", ["--scheme", "FP8_DYNAMIC"], ["model_free_ptq", "FP8_DYNAMIC"]),
    ("llm-compressor model_free_ptq", ["--scheme", "FP8_BLOCK"], ["model_free_ptq", "FP8_BLOCK"]),
    ("llm-compressor model_free_ptq", ["--scheme", "W4A16"], ["model_free_ptq", "W4A16"]),
    ("mlx_lm", ["--scheme", "W4A16_ASYM", "--convention", "mlx", "--group-size", "64"], ["mlx", "4", "64"]),
    ("llama-quantize", ["--scheme", "Q4_0"], "Q4_0"),
    ("llama-quantize", ["--scheme", "Q8_0"], "Q8_0"),
    ("llama-quantize", ["--scheme", "Q4_K"], "Q4_K"),
]


class Figures:
    """What running some commands took."""

    def __init__(self, wall, cpu, anonymous):
        self.wall, self.cpu, self.anonymous = wall, cpu, anonymous


def anonymous_kb(pid):
    try:
        with open("/proc/%d/status" % pid) as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def measure(*commands):
    """Runs commands one after the other; CPU is that of the processes and of those that they waited for."""
    cpu, peak, started = 0.0, 0, time.monotonic()
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, anonymous_kb(process.pid))
            time.sleep(0.005)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit("%s ended with %d" % (" ".join(command), process.returncode))
        cpu += usage.ru_utime + usage.ru_stime
    return Figures(time.monotonic() - started, cpu, peak * 1024 / 1e6)


def files(folder):
    """The files of a folder; a file stands for itself."""
    if os.path.isfile(folder):
        return [folder]
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file())


def clear(folder):
    """Removes an output, and lets the disk come to rest."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in (folder, folder + ".gguf"):
        if os.path.isfile(path):
            os.remove(path)
    os.sync()


def warm(folder):
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def cool(folder):
    """Drops the files of a folder from the page cache; what is dirty would stay, so it is synced before."""
    for path in files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copies(folder, to):
    """The two commands of the yardstick."""
    return ["cp", "-r", folder, to], ["sync"] + [os.path.join(to, os.path.basename(f)) for f in files(folder)]


def gigabytes(folder):
    return sum(os.path.getsize(path) for path in files(folder)) / 1e9


def ratio(job, yardstick, key):
    pairs = zip(job, yardstick)
    return statistics.median(getattr(a, key) / max(getattr(b, key), 1e-9) for a, b in pairs)


def middle(runs, key):
    return statistics.median(getattr(run, key) for run in runs)


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.binary = os.path.abspath(options.binary)
        self.source = options.source or os.path.join(folder, "source")
        if not os.path.exists(self.source):
            synthetic.write(self.source, int(options.gigabytes * 1e9), 2 * 10**9, 4096, 14336, 32768)
        self.extra = ["--memory", options.memory] if options.memory else []
        if options.threads:
            self.extra += ["--threads", str(options.threads)]

    def path(self, name):
        return os.path.join(self.folder, name.replace(" ", "-"))

    def command(self, arguments, source, destination):
        verb, *rest = arguments
        return [self.binary, verb, source, "-o", destination, "--quiet", *rest, *self.extra]

    def input_of(self, reads):
        """The folder that a job reads; the result of another job is made if it is not there."""
        if reads == "source":
            return self.source
        made = self.path("made " + reads)
        if not os.path.exists(made):
            arguments = next(a for name, a, _ in JOBS if name == reads)
            subprocess.run(self.command(arguments, self.source, made), check=True, stdout=subprocess.DEVNULL)
        return made

    def prepare(self, folder):
        (cool if self.options.cold else warm)(folder)

    def job(self, name, arguments, reads):
        """Rounds of yardstick and job: cp with sync, cp alone (cold only), the job."""
        source, result, copy = self.input_of(reads), self.path("result"), self.path("copy")
        yardstick = source
        if arguments[0] == "dequantize":
            # Its output is what cp is held against: it is made once, and copied.
            yardstick = self.path("dense")
            clear(yardstick)
            subprocess.run(self.command(arguments, source, yardstick), check=True, stdout=subprocess.DEVNULL)
        rounds = {"cp and sync": [], "cp": [], "job": []}
        for _ in range(self.options.rounds):
            copy_command, sync_command = copies(yardstick, copy)
            if self.options.cold:
                clear(copy)
                cool(yardstick)
                rounds["cp"].append(measure(copy_command))
            clear(copy)
            self.prepare(yardstick)
            rounds["cp and sync"].append(measure(copy_command, sync_command))
            clear(copy)
            clear(result)
            self.prepare(source)
            rounds["job"].append(measure(self.command(arguments, source, result)))
            sizes = gigabytes(source), gigabytes(result)
            clear(result)
        if yardstick != source:
            clear(yardstick)
        return rounds, sizes

    def peer(self, arguments, theirs):
        """Rounds of cp and sync of the source, our job, theirs, and whether theirs could run."""
        result, copy = self.path("result"), self.path("copy")
        source = self.source
        if isinstance(theirs, str):
            # It reads GGUF, so ours does as well: the file is made by us, in BF16.
            source = self.path("source.gguf")
            if not os.path.exists(source):
                command = [self.binary, "convert", self.source, "-o", source, "--to", "gguf", "--quiet"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            peer = [self.options.llama_quantize, source, result + ".gguf", theirs, "2"]
        else:
            script = os.path.join(HERE, "peer_jobs.py")
            peer = [self.options.peers, script, theirs[0], source, result, *theirs[1:]]
        rounds = {"cp and sync": [], "job": [], "peer": []}
        for _ in range(self.options.rounds):
            copy_command, sync_command = copies(self.source, copy)
            self.prepare(self.source)
            rounds["cp and sync"].append(measure(copy_command, sync_command))
            clear(copy)
            self.prepare(source)
            ours = self.command(["quantize", *arguments], source, result)
            rounds["job"].append(measure(ours))
            clear(result)
            self.prepare(source)
            rounds["peer"].append(measure(peer))
            clear(result)
        return rounds


def peers_table(bench):
    print("| job | cp and sync, s | ours, s | theirs, s | times | CPU of ours, s | CPU of theirs, s | times | anonymous, ours, MB | theirs, MB |")
    print("| --- |" + " ---: |" * 9)
    words = bench.options.jobs.split(",")
    for name, ours, theirs in PEERS:
        if not any(word in "quantize %s %s" % (name, ours[1]) for word in words):
            continue
        has_it = bench.options.llama_quantize if isinstance(theirs, str) else bench.options.peers
        if not has_it:
            print("| %s: not run, no program given |" % name + " |" * 9)
            continue
        rounds = bench.peer(ours, theirs)
        both, job, peer = rounds["cp and sync"], rounds["job"], rounds["peer"]
        cells = ["%s, %s" % (name, ours[1]),
                 "%.2f" % middle(both, "wall"), "%.2f" % middle(job, "wall"), "%.2f" % middle(peer, "wall"), "%.1f" % ratio(peer, job, "wall"),
                 "%.2f" % middle(job, "cpu"), "%.2f" % middle(peer, "cpu"), "%.1f" % ratio(peer, job, "cpu"),
                 "%.0f" % max(run.anonymous for run in job), "%.0f" % max(run.anonymous for run in peer)]
        print("| " + " | ".join(cells) + " |", flush=True)


def table(bench):
    cold = bench.options.cold
    print("| job, page cache %s | GB read | GB written | cp, s | cp and sync, s | job, s | ratio | CPU of cp, s | CPU of job, s | ratio |"
          " anonymous, MB |" % ("cold" if cold else "warm"))
    print("| --- |" + " ---: |" * 10)
    chosen = [job for job in JOBS if any(word in job[0] for word in bench.options.jobs.split(","))]
    if not chosen:
        sys.exit("no job is called like any of %s" % bench.options.jobs)
    for name, arguments, reads in chosen:
        rounds, (read, written) = bench.job(name, arguments, reads)
        both, alone, job = rounds["cp and sync"], rounds["cp"], rounds["job"]
        cells = [name, "%.2f" % read, "%.2f" % written,
                 "%.2f" % middle(alone, "wall") if alone else "", "%.2f" % middle(both, "wall"), "%.2f" % middle(job, "wall"),
                 "%.2f" % ratio(job, both, "wall") + (" (%.2f of cp)" % ratio(job, alone, "wall") if alone else ""),
                 "%.2f" % middle(both, "cpu"), "%.2f" % middle(job, "cpu"), "%.2f" % ratio(job, both, "cpu"),
                 "%.0f" % max(run.anonymous for run in job)]
        print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--jobs", default="quantize", help="words that the names of the jobs contain, with commas between")
    parser.add_argument("--memory", help="as the program's (default: its own)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--source", help="a checkpoint to use, or a folder to create and keep")
    parser.add_argument("--peers", help="an interpreter that has llm-compressor and mlx_lm: their jobs beside ours")
    parser.add_argument("--llama-quantize", help="llama.cpp's program: its jobs beside ours")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(options, folder)
        if options.peers or options.llama_quantize:
            peers_table(bench)
        else:
            table(bench)


if __name__ == "__main__":
    main()
