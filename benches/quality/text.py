"""Calibration and evaluation sentences from documents that are on any machine, disjoint by document.

Calibration has three kinds of documents: the docstrings of Python's standard library (a document is a file), the topics of Python's own
manual that ``help()`` shows (a document is a topic), and licenses of installed packages. A document belongs to calibration or to
evaluation by the first bit of the SHA-256 of its name, so no document is in both. A third of the evaluation sentences come from a kind
that calibration lacks altogether: manual pages. Sentences are taken round-robin over the documents of a kind in the order of their
digests, so that one large document does not make up most of the text, and nothing depends on the order of a directory. What is drawn
depends on the Python version and on what is installed; the digests of both texts go into the statistics and the report.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Sentences, as in the measurement that the engine's aims come from.
CALIBRATION, EVALUATION = 4000, 3000

#: Folders of the standard library whose documentation is no prose: test suites, bundled wheels, generated tables.
_SKIPPED = ("test", "tests", "idlelib", "lib2to3", "site-packages", "ensurepip", "turtledemo", "__pycache__")


def split(manuals: Path) -> tuple[list[str], list[str]]:
    """Calibration and evaluation sentences.

    Args:
        manuals: A folder of manual pages in troff (``man1/*.1`` or ``*.1.gz``), as ``/usr/share/man``.

    Raises:
        ValueError: There is not enough text; says of what kind.
    """
    kinds = {"docstrings": docstrings(), "topics": topics(), "licenses": licenses()}
    halves: tuple[dict[str, list[list[str]]], dict[str, list[list[str]]]] = ({}, {})
    for kind, documents in kinds.items():
        for half in halves:
            half[kind] = []
        for name in sorted(documents, key=digest):
            halves[digest(name)[0] & 1][kind].append(sentences(documents[name]))
    calibration = draw(halves[0], CALIBRATION, set())
    seen = set(calibration)
    elsewhere = EVALUATION // 3
    pages = {"manual pages": [sentences(text) for _, text in sorted(manual_pages(manuals).items(), key=lambda page: digest(page[0]))]}
    evaluation = draw(halves[1], EVALUATION - elsewhere, seen) + draw(pages, elsewhere, seen)
    return calibration, evaluation


def draw(kinds: Mapping[str, list[list[str]]], count: int, seen: set[str]) -> list[str]:
    """``count`` sentences that were not seen, in equal parts of each kind as far as they reach, a sentence of each document in turn."""
    queues = [interleaved(documents) for documents in kinds.values()]
    drawn: list[str] = []
    while queues and len(drawn) < count:
        for queue in list(queues):
            fresh = next((s for s in queue if s not in seen), None)
            if fresh is None:
                queues.remove(queue)
            elif len(drawn) < count:
                seen.add(fresh)
                drawn.append(fresh)
    if len(drawn) < count:
        raise ValueError(f"{', '.join(kinds)}: expected {count} sentences, found {len(drawn)}; is the documentation installed?")
    return drawn


def interleaved(documents: list[list[str]]) -> Iterator[str]:
    """The first sentence of each document, then the second of each, and so on."""
    longest = max((len(document) for document in documents), default=0)
    for at in range(longest):
        for document in documents:
            if at < len(document):
                yield document[at]


def digest(name: str) -> bytes:
    """What orders and divides documents."""
    return hashlib.sha256(name.encode()).digest()


def text_digest(text: list[str]) -> str:
    """Of sentences, joined by line feeds."""
    return "sha256:" + hashlib.sha256("\n".join(text).encode()).hexdigest()


def sentences(text: str) -> list[str]:
    """Whole sentences of 5 to 60 words that are mostly letters; tables, code and headings fall out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        flat = re.sub(r"\s+", " ", paragraph).strip()
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z\"'(])", flat):
            words = sentence.split()
            letters = sum(c.isalpha() or c == " " for c in sentence)
            if 5 <= len(words) <= 60 and sentence[0].isalpha() and sentence[-1] in ".!?:" and letters >= 0.8 * len(sentence):
                found.append(sentence)
    return found


def docstrings() -> dict[str, str]:
    """File of the standard library to its docstrings."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if any(part in _SKIPPED for part in name.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
        found["docstrings/" + name.as_posix()] = "\n\n".join(text for text in texts if text)
    return found


def topics() -> dict[str, str]:
    """Topic of ``help()`` to its text."""
    from pydoc_data.topics import topics as given

    return {f"topics/{name}": plain(text) for name, text in given.items()}


def plain(markup: str) -> str:
    """Text without the marks of reStructuredText."""
    return re.sub(r"[*`]+|\s*\[\d+\]", "", markup)


def licenses() -> dict[str, str]:
    """Licenses of installed packages, of which equal ones count once."""
    found: dict[str, str] = {}
    known: set[bytes] = set()
    for folder in {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}:
        for path in sorted(Path(folder).glob("*.dist-info/**/*")):
            if path.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice)", path.name):
                text = path.read_text(errors="replace")
                if digest(text) not in known:
                    known.add(digest(text))
                    found[f"licenses/{path.relative_to(folder).as_posix()}"] = text
    return found


def manual_pages(root: Path) -> dict[str, str]:
    """Page of the English manual to its prose."""
    found = {}
    for path in sorted(root.glob("man[1-8]/*")):
        if path.is_symlink() or not path.is_file():
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found[f"manual pages/{path.name}"] = prose_of_troff(raw.decode("utf-8", "replace"))
    return found


def prose_of_troff(source: str) -> str:
    """What a manual page says, without requests and font changes; a request that is not of a font ends a paragraph."""
    lines = []
    for line in source.splitlines():
        if line.startswith((".\\\"", "'\\\"")):
            continue
        if request := re.match(r"[.']\s*(\w*)\s*(.*)", line):
            is_font = request[1] in ("B", "I", "BR", "IR", "RB", "RI", "BI", "IB")
            lines.append(request[2].replace('"', "") if is_font else "\n")
        else:
            lines.append(line)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)", "", "\n".join(lines))
    text = text.replace("\\-", "-").replace("\\(aq", "'").replace("\\&", "").replace("\\e", "\\")
    return re.sub(r"\\(\(..|\[\w+\]|.)", "", text)
