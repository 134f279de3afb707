"""Offscreen pictures of a MuJoCo scene. OpenGL is touched at the first picture, never by importing.

`mujoco.Renderer` takes the backend that was chosen when mujoco was imported; asking for EGL that early would make
machines without it fail even for worlds that draw nothing. So the backend is chosen here, at the first picture.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from functools import cache
from typing import Any

import mujoco
import numpy as np
from jaxtyping import UInt8

from polyarm.sim.world import Missing
from polyarm.spec import UserError


def picture(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: str | mujoco.MjvCamera,
    size: tuple[int, int],
    shadows: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """What `camera` (of the model, or free) sees, rgb. `size` is (height, width), at most (960, 1280).

    Shadows cost over ten times the rest on a machine without a GPU. Kinematics and camera poses in `data` must be current.
    Raises `Missing` where no OpenGL can be had.
    """
    return _canvas(model, *size).draw(data, camera, shadows)


# Never evicted: destroying a context while another is current deletes the other's objects.
@cache
def _canvas(model: mujoco.MjModel, height: int, width: int) -> _Canvas:
    return _Canvas(model, height, width)


def _backend() -> Any:
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY")
    if headless and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if name == "egl":
        from mujoco.egl import GLContext
    elif name == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.gl_context import GLContext
    return GLContext


class _Canvas:
    """One OpenGL context and scene, shared by all worlds of a process that draw this model at this size."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        most = (model.vis.global_.offheight, model.vis.global_.offwidth)
        if height > most[0] or width > most[1]:
            raise UserError(
                f"a picture of {height} x {width} is larger than {most[0]} x {most[1]}: ask for a smaller one"
            )
        try:
            with warnings.catch_warnings(action="ignore"):  # glfw warns beside failing
                self._context = _backend()(width, height)
                self._context.make_current()
                self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except (
            Exception
        ) as error:  # each backend fails in its own way: ImportError, AttributeError, FatalError, EGLError
            why = " ".join(str(error).split())[:160].rstrip(". ")
            raise Missing(
                f"no picture can be drawn, OpenGL (MUJOCO_GL={os.environ.get('MUJOCO_GL') or 'unset'}) failed with "
                f"{type(error).__name__} ({why}): install libegl1 and set MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa, "
                "or use the state streams alone"
            ) from error
        atexit.register(self._context.free)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._model, self._option = model, mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._rgb = np.empty((height, width, 3), np.uint8)

    def draw(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera, shadows: bool) -> np.ndarray:
        self._context.make_current()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        view = camera
        if isinstance(camera, str):
            view = mujoco.MjvCamera()
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, every, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._mjr)
        mujoco.mjr_readPixels(self._rgb, None, self._rect, self._mjr)
        return self._rgb[::-1].copy()  # OpenGL's first row is the lowest
