"""What all tests share: where the project and the real models beside it are."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `shared` need the real models and images beside the project."""
    if (SHARED / "models").is_dir() and (SHARED / "data").is_dir():
        return
    skip = pytest.mark.skip(reason=f"needs the real models and images in {SHARED}, which is not there")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The project's own trained models."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The real models and images beside the project; only for tests marked `shared`."""
    return SHARED
