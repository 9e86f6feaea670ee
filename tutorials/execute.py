"""Run every notebook here from top to bottom in a fresh kernel and keep its outputs: `make tutorials`.

Nothing of the machine is kept: no timestamps, no interpreter version, no paths.
"""

import os
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}


def execute(path: Path) -> None:
    """Run one notebook with the kernel of this interpreter, in place."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources, record_timing=False)
    # Without directories to search, python3 is the kernel of sys.executable, whatever else is installed.
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    client.execute(env=ENVIRONMENT)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        print(path.name)
        execute(path)
