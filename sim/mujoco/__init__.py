"""MuJoCo, imported so that a machine without OpenGL can simulate.

Importing `mujoco` loads the backend that MUJOCO_GL names and fails where that is not there or is no backend, even for worlds that
draw nothing. Here it is then imported without one, and `render` says at the first picture what is wrong. Modules outside
this folder take it from here.
"""

import os

try:
    import mujoco
except Exception:
    if "MUJOCO_GL" not in os.environ:
        raise
    asked, os.environ["MUJOCO_GL"] = os.environ["MUJOCO_GL"], "off"
    try:
        import mujoco
    finally:
        os.environ["MUJOCO_GL"] = asked

__all__ = ["mujoco"]
