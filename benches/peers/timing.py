"""Cases, peers and interleaved rounds: what is timed, and how."""

import contextlib
import fcntl
import statistics
import sys
import time
from dataclasses import dataclass, field


@dataclass
class Peer:
    """One way to do the work of a case."""

    name: str
    how: str  # what is called, and whether the output is fresh or given
    call: object  # returns anything; a negative number says that it was refused
    answer: object = None  # returns bytes to compare with ours, or None where the meaning differs
    rows: int = 0  # of the slice it works on; 0 for all
    target: float = 0.0  # how many times faster we want to be; 0 for ourselves and the copy
    seconds: list = field(default_factory=list)
    verdict: str = ""

    def median(self):
        return statistics.median(self.seconds)


@dataclass
class Case:
    """The same work for everyone."""

    name: str
    title: str
    rows: int
    columns: int
    output: str
    peers: list
    bytes_in: int = 0
    bytes_out: int = 0

    def weights_per_second(self, peer):
        return (peer.rows or self.rows) * self.columns / peer.median()

    def times(self, peer):
        """How many times faster safequant is than this peer, per weight."""
        return self.weights_per_second(self.peers[0]) / self.weights_per_second(peer)


def once(peer):
    """Seconds of this process's CPU time: one thread works, and on a shared machine a clock on the wall measures the others."""
    began = time.process_time()
    result = peer.call()
    took = time.process_time() - began
    if isinstance(result, float) and result < 0:
        raise RuntimeError("refused")
    return took


def check(case):
    """Compares every answer with ours, which is the first peer's; drops peers that fail, loudly."""
    ours = case.peers[0].answer()
    for peer in list(case.peers):
        try:
            once(peer)  # warms up: compilers compile, pages are touched
            theirs = peer.answer() if peer.answer else None
        except Exception as error:
            print(f"{case.name}: {peer.name} SKIPPED: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            if peer is case.peers[0]:
                raise
            case.peers.remove(peer)
            continue
        peer.verdict = verdict(ours, theirs)


def verdict(ours, theirs):
    import numpy as np

    if theirs is None:
        return "not compared"
    ours = np.frombuffer(ours, np.uint16)[: len(theirs) // 2]
    theirs = np.frombuffer(theirs, np.uint16)
    if len(theirs) == 0 or len(ours) != len(theirs):
        return f"another length ({len(theirs)})"
    different = np.count_nonzero(ours != theirs)
    return "same bits" if different == 0 else f"{100 * different / len(ours):.2g} % differ"


@contextlib.contextmanager
def alone(path):
    """Holds the lock of a file, if there is one."""
    if path is None:
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def measure(case, rounds):
    """Rounds over all peers, so that a disturbance meets everyone; slow peers run in three of them."""
    for at in range(rounds):
        for peer in case.peers:
            if at < 3 or peer.median() < 0.5:
                peer.seconds.append(once(peer))


def tell(case):
    for peer in case.peers:
        line = f"  {case.name}: {peer.name}: {1e3 * peer.median():.2f} ms, {case.times(peer):.1f}x, {peer.verdict}"
        print(line, file=sys.stderr, flush=True)
