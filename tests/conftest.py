import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def real_data(name: str) -> Path:
    """Folder of a real data set, or a skip with the reason. Set LANDFOLD_DATA to look elsewhere."""
    folder = Path(os.environ.get("LANDFOLD_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} (set LANDFOLD_DATA)")
    return folder


@pytest.fixture
def biomass_data() -> Path:
    return real_data("biomass")
