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
            self.assertEqual(texts(executed), texts(committed))


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What cells print, but for the names of temporary folders and warnings of the kernel's own."""
    printed = [output.text for output in outputs(notebook) if output.output_type == "stream" and output.name == "stdout"]
    return [text for text in printed if "/tmp" not in text]


if __name__ == "__main__":
    sys.exit(unittest.main())
