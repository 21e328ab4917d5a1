"""What the tests share: where the fixtures are, and what their tools expect."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

#: The repository; tests run elsewhere, so that the installed package is what they import.
ROOT = Path(os.environ.get("SAFEQUANT_ROOT", Path(__file__).resolve().parents[3]))
FIXTURES = ROOT / "fixtures"


class Fixture(NamedTuple):
    """A checkpoint of a real tool with the tool's own dequantized weights beside it."""

    name: str
    folder: Path
    #: What the tool said of it: ``expected`` maps names to dtypes, shapes and digests.
    facts: dict[str, Any]


def fixtures() -> Iterator[Fixture]:
    """Every fixture that expects something, by name."""
    for path in sorted(FIXTURES.rglob("fixture.json")):
        facts = json.loads(path.read_text())
        if facts.get("expected"):
            yield Fixture(path.parent.relative_to(FIXTURES).as_posix(), path.parent, facts)


def staged(fixture: Fixture, place: Path) -> Path:
    """Copies what belongs to the checkpoint, not what the fixture tells about it; gives what is to be opened."""
    place.mkdir()
    for path in fixture.folder.iterdir():
        told = path.name.startswith(("fixture.json", "expected", "source", "extra"))
        if path.is_file() and not told:
            shutil.copy(path, place)
    ggufs = sorted(place.glob("*.gguf"))
    return ggufs[0] if ggufs else place
