"""One torch thread a process, and shapes in signatures checked: both only under pytest."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("polyarm", "beartype.beartype")

REPO = Path(__file__).parent.parent
SHARED_DATA = REPO.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pusht_zarr():
    """The 206 human PushT demonstrations, where the machine has them."""
    path = SHARED_DATA / "pusht" / "pusht_cchi_v7_replay.zarr"
    if not path.exists():
        pytest.skip("the human PushT demonstrations are not on this machine")
    return path


@pytest.fixture(scope="session")
def kitchen_zarr():
    """The 19 human Franka Kitchen demonstrations, where the machine has them."""
    path = SHARED_DATA / "kitchen_complete_human" / "kitchen_complete_from_minari.zarr"
    if not path.exists():
        pytest.skip("the human Franka Kitchen demonstrations are not on this machine")
    return path


@pytest.fixture(scope="session")
def needs_sapien():
    """Skips where SAPIEN is missing or has nothing to draw with, and says why; fails there if POLYARM_NEEDS_VULKAN is set."""
    from polyarm.sim.sapien.vulkan import prepare
    from polyarm.spec import UserError

    try:
        prepare()
    except UserError as error:
        (pytest.fail if os.environ.get("POLYARM_NEEDS_VULKAN") else pytest.skip)(str(error))
