"""Executes the notebook of the documentation, as it is committed."""

from __future__ import annotations

import os
import sys
import unittest
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(os.environ.get("SAFEQUANT_ROOT", Path(__file__).resolve().parents[4]))
#: ``SAFEQUANT_WRITE_NOTEBOOK=1`` keeps what was executed: text and pictures.
KEEP = os.environ.get("SAFEQUANT_WRITE_NOTEBOOK") == "1"


class Notebook(unittest.TestCase):
    def test_every_cell_runs_and_says_what_it_said(self) -> None:
        path = ROOT / "docs" / "tour.ipynb"
        committed = nbformat.read(path, as_version=4)
        executed = nbformat.read(path, as_version=4)
        folder = {"metadata": {"path": str(path.parent)}}
        NotebookClient(executed, timeout=600, kernel_name="python3", resources=folder).execute()
        pictures = [o for o in outputs(executed) if "image/png" in o.get("data", {})]
        self.assertGreaterEqual(len(pictures), 4)
        if KEEP:
            for cell in executed.cells:
                cell.metadata.pop("execution", None)
            nbformat.write(executed, path)
        else:
            printed = texts(committed)
            self.assertGreater(sum(len(lines) for lines in printed), 10)
            self.assertEqual(texts(executed), printed)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The lines that each cell prints, but for those with names of temporary folders and warnings of the kernel's own.

    A cell's lines, and not its outputs: how many outputs one cell's lines arrive in is a matter of when the kernel flushes.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = ("".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout") for cell in cells)
    return [[line for line in text.splitlines() if "/tmp" not in line] for text in printed]


if __name__ == "__main__":
    sys.exit(unittest.main())
