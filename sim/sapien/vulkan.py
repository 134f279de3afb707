"""SAPIEN's way to a picture: a Vulkan driver that draws, and ManiSkill told of it. Importing this loads neither.

What stands between a machine without a GPU and a picture:

- A driver. SwiftShader draws on any CPU; it stands beside the machine's own drivers, and a GPU that draws goes before it.
- ManiSkill splits the device's name `pci:0000:00:00.0` at its colons.
- SAPIEN integrates a table for reflections of an environment map, 9 to 40 s of a core at a process's first picture.
  ManiSkill's scenes have no such map, so the table is multiplied by zero: its "minimal" shaders without it draw the same
  pictures to the bit.
- ManiSkill and SAPIEN download what they miss, or ask at the keyboard whether to. Here they say so, and nothing comes by itself.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from polyarm.spec import UserError

ICD = "vk_swiftshader_icd.json"
CACHE = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
PLACES = (
    f"{sys.prefix}/share/vulkan",
    f"{CACHE}/polyarm/vulkan",
    "/usr/lib/chromium",
    "/usr/lib/chromium-browser",
    "/usr/lib64/chromium-browser",
    "/snap/chromium/current/usr/lib/chromium-browser",
    "/opt/google/chrome",
)
"""Where SwiftShader may be: `polyarm.sim.sapien.swiftshader` puts it in one of the first two, others come with a browser."""
NAMED_BY = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES")
"""Whoever sets one of these has chosen the drivers."""
REMEDY = (
    "run `python -m polyarm.sim.sapien.swiftshader`, which brings a driver that draws on a CPU, install a GPU's, "
    f"or name one by VK_DRIVER_FILES=/path/to/{ICD}"
)


def device() -> str:
    """The device that draws, for ManiSkill's `render_backend`: `cuda:0`, `pci:0000:00:00.0`. `UserError` where there is none."""
    return str(_renderer().device)


def driver() -> str:
    """What Vulkan calls that device: a GPU's name, `SwiftShader Device (Subzero)`."""
    return _renderer().device.name


@cache
def prepare() -> Any:
    """ManiSkill, ready to draw on `device()`; its package."""
    drawn_by = device()
    with warnings.catch_warnings(action="ignore"):
        try:
            import mani_skill.envs
            from mani_skill.envs.utils.system import backend
        except ImportError as error:
            raise UserError(f"this world needs mani-skill ({error}): pip install 'polyarm[sapien]'") from error
    import sapien.render

    mani_skill.logger.setLevel(logging.ERROR)
    split = backend.parse_backend_device_id
    backend.parse_backend_device_id = lambda name: (name, None) if str(name).startswith("pci:") else split(name)
    if not drawn_by.startswith("cuda"):
        plain, quick = sapien.render.set_camera_shader_dir, str(_shaders())
        sapien.render.set_camera_shader_dir = lambda name: plain(quick if name == "minimal" else name)
    _refuse_downloads()
    return mani_skill


def draw() -> np.ndarray:
    """A lit box on black, [64 64 3] uint8."""
    _renderer()
    import sapien

    sapien.render.set_camera_shader_dir(str(_shaders()))
    sapien.render.set_picture_format("Color", "r8g8b8a8unorm")
    sapien.render.set_picture_format("PositionSegmentation", "r16g16b16a16sint")
    scene = sapien.Scene()
    scene.set_ambient_light([0.5, 0.5, 0.5])
    box = scene.create_actor_builder()
    box.add_box_visual(half_size=[0.2, 0.2, 0.2], material=[0.8, 0.2, 0.2])
    box.build_static(name="box").set_pose(sapien.Pose([1, 0, 0]))
    camera = scene.add_camera("camera", 64, 64, fovy=1, near=0.1, far=10)
    scene.update_render()
    camera.take_picture()
    return camera.get_picture("Color")[..., :3]


@cache
def _renderer() -> Any:
    """SAPIEN's renderer on the best device; kept, since one that is freed with its last scene starts anew with the next."""
    named = {name: os.environ[name] for name in NAMED_BY if os.environ.get(name)}
    try:
        with warnings.catch_warnings(action="ignore"):  # it falls back to a Vulkan loader of its own, which is as good
            import sapien
    except ImportError as error:
        raise UserError(f"this world needs SAPIEN ({error}): pip install 'polyarm[sapien]'") from error
    if not named and (found := _swiftshader()):
        guessed = os.environ.get("VK_ICD_FILENAMES")  # SAPIEN's, where NVIDIA's driver names none
        name, value = (
            ("VK_ICD_FILENAMES", f"{guessed}{os.pathsep}{found}") if guessed else ("VK_ADD_DRIVER_FILES", found)
        )
        os.environ[name] = value
    try:
        with _hushed():
            return sapien.render.RenderSystem()
    except RuntimeError as error:
        if not named:
            raise UserError(f"SAPIEN finds no Vulkan driver that draws ({error}): {REMEDY}") from error
        chosen = ", ".join(f"{name}={value}" for name, value in named.items())
        raise UserError(f"{chosen} names no Vulkan driver that draws ({error}): correct it or leave it out") from error


def _swiftshader() -> str | None:
    places = (os.path.join(os.path.expanduser(place), ICD) for place in PLACES)
    return next((place for place in places if os.path.exists(place)), None)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what drivers print to stderr while they start: SwiftShader has a line for each structure that it ignores."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _shaders() -> Path:
    """The folder of SAPIEN's minimal shaders without the table of reflections, named by what is in it.

    Processes that make it at once write the same files, each whole."""
    import sapien

    source = Path(sapien.__file__).parent / "vulkan_shader"
    texts = {}
    for file in sorted(f for folder in ("common", "minimal") for f in (source / folder).iterdir()):
        text = re.sub(r"layout\(set = \d, binding = 8\) uniform sampler2D samplerBRDFLUT;", "", file.read_text())
        text = text.replace("texture(samplerBRDFLUT, vec2(roughness, dotNV)).xy", "vec2(1, 0)")
        texts[file.relative_to(source)] = text
    made = f"sapien-shaders-{sha256(repr(texts).encode()).hexdigest()[:16]}"
    try:
        folder = Path(CACHE).expanduser() / "polyarm" / made
        _write(folder, texts)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        folder = Path(tempfile.mkdtemp(prefix="polyarm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _write(folder, texts)
    return folder / "minimal"


def _write(folder: Path, texts: dict[Path, str]) -> None:
    for name, text in texts.items():
        file = folder / name
        if file.exists() and file.read_text() == text:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.write_text(text)
        beside.replace(file)


def _refuse_downloads() -> None:
    """Every way on which ManiSkill and SAPIEN fetch a file ends in one sentence."""
    from mani_skill import ASSET_DIR, format_path
    from mani_skill.agents.base_agent import BaseAgent
    from mani_skill.utils import assets, download_asset, registration
    from sapien import physx

    make, load, enable_gpu = registration.EnvSpec.make, BaseAgent._load_articulation, physx.enable_gpu

    def missing(what: str, name: str) -> UserError:
        return UserError(
            f"{what} is not in {ASSET_DIR}, and nothing is downloaded by itself: if you want it, run "
            f"`python -m mani_skill.utils.download_asset {name}`"
        )

    def environment(spec: Any, **kwargs: Any) -> Any:
        for name in spec.asset_download_ids or ():
            group = name in assets.DATA_GROUPS
            sources = assets.expand_data_group_into_individual_data_source_ids(name) if group else [name]
            if not all(map(assets.is_data_source_downloaded, sources)):
                raise missing(f"ManiSkill's {name!r}, which {spec.uid} needs,", name)
        return make(spec, **kwargs)

    def robot(agent: Any, *args: Any, **kwargs: Any) -> None:
        if not os.path.exists(format_path(str(agent.urdf_path or agent.mjcf_path))):
            raise missing(f"ManiSkill's robot {agent.uid!r}", agent.uid)
        load(agent, *args, **kwargs)

    def physx_on_gpu() -> None:
        place = Path.home() / ".sapien" / "physx" / physx.version()
        if not physx.is_gpu_enabled() and not any(place.glob("*PhysXGpu_64*")):
            raise UserError(
                f"PhysX's library for GPUs is not in {place}, and nothing is downloaded by itself: if you want it, run "
                "`python -c 'import sapien; sapien.physx.enable_gpu()'`"
            )
        enable_gpu()

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise UserError(f"ManiSkill would download {args[0]}: nothing is downloaded by itself, fetch it beforehand")

    registration.EnvSpec.make, BaseAgent._load_articulation, physx.enable_gpu = environment, robot, physx_on_gpu
    download_asset.prompt_yes_no = download_asset.download = refuse


def main() -> int:
    """Says what drew a picture."""
    try:
        picture = draw()
        if picture.std() < 1:
            raise UserError(f"{driver()} draws an empty picture: {REMEDY}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{driver()}, {picture.shape[1]}x{picture.shape[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
