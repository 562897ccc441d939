"""Build the wheel and the source distribution and check what they hold: `make package`.

The wheel must hold every file of the package and nothing else; the tests must run from the unpacked source distribution.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = (".py", ".typed", ".css", ".html", ".svg")
SMOKE_TESTS = ("tests/test_models.py", "tests/test_channels.py")


def package_files() -> set[str]:
    """The files that the wheel must hold, as paths inside it."""
    files = (ROOT / "onnxmerge").rglob("*")
    return {str(file.relative_to(ROOT)) for file in files if file.suffix in DATA and "__pycache__" not in file.parts}


def check_wheel(wheel: Path) -> None:
    """Every file of the package, the licence, and nothing beside the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name for name in names if ".dist-info/" not in name}
    wanted = package_files()
    if held != wanted:
        sys.exit(f"{wheel.name}: missing {sorted(wanted - held)}, unexpected {sorted(held - wanted)}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name} holds no licence")


def check_source(source: Path, folder: Path) -> None:
    """Unpacked, the source distribution collects all tests and passes some of them."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {"PYTHONPATH": str(root)}
    subprocess.run([*pytest, "--collect-only"], cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*pytest, *SMOKE_TESTS], cwd=root, env=environment, check=True)


def main() -> None:
    """Build into a temporary folder; exit 1 with what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        built, unpacked = Path(name) / "dist", Path(name) / "source"
        unpacked.mkdir()
        subprocess.run([sys.executable, "-m", "build", "--outdir", str(built), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
        (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
        check_wheel(wheel)
        check_source(source, unpacked)
    print(f"{wheel.name} and {source.name} hold what they should")


if __name__ == "__main__":
    main()
