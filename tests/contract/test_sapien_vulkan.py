"""SAPIEN draws without a GPU, says in one sentence why it cannot, and fetches nothing by itself.

Mutations that turn these red: let SwiftShader's ICD replace the machine's drivers instead of joining them (or overrule those
that a person named); leave `_refuse_downloads` out of `prepare`, or any one of its five replacements; give ManiSkill's parser
back; write a shader in place; leave out `_hushed`; take the first package whether or not SwiftShader is in it.
"""

import io
import os
import socket
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from polyarm.commands import doctor
from polyarm.sim.sapien import swiftshader, vulkan
from polyarm.spec import UserError

sapien_here = pytest.mark.usefixtures("needs_sapien")
FAKE = """
import os
from types import SimpleNamespace
if os.environ.get("GUESS"):
    os.environ["VK_ICD_FILENAMES"] = os.environ["GUESS"]
def renderer():
    if os.environ.get("BARE"):
        raise RuntimeError("failed to find a rendering device")
    return SimpleNamespace(device="it")
render = SimpleNamespace(RenderSystem=renderer)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with SwiftShader, a `sapien` that shows what it was told, and no driver named."""
    (tmp_path / "sapien").mkdir()
    (tmp_path / "sapien" / "__init__.py").write_text(FAKE)
    (tmp_path / vulkan.ICD).write_text("{}")
    monkeypatch.delitem(sys.modules, "sapien", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vulkan, "PLACES", ("/nowhere", str(tmp_path)))
    for name in vulkan.NAMED_BY:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    yield monkeypatch
    sys.modules.pop("sapien", None)


def told():
    vulkan._renderer.__wrapped__()
    return {name: os.environ[name] for name in vulkan.NAMED_BY if name in os.environ}


def test_swiftshader_joins_the_machines_drivers(machine, tmp_path):
    assert told() == {"VK_ADD_DRIVER_FILES": f"{tmp_path}/{vulkan.ICD}"}


def test_swiftshader_joins_the_driver_that_sapien_guesses(machine, tmp_path):
    machine.setenv("GUESS", "/guess.json")
    assert told() == {"VK_ICD_FILENAMES": f"/guess.json:{tmp_path}/{vulkan.ICD}"}


@pytest.mark.parametrize("name", vulkan.NAMED_BY)
def test_a_person_who_names_a_driver_has_the_last_word(name, machine):
    machine.setenv(name, "/mine.json")
    assert told() == {name: "/mine.json"}
    machine.setenv("BARE", "1")
    with pytest.raises(UserError, match=f"{name}=/mine.json names no .*: correct it or leave it out"):
        told()


def test_no_driver_is_one_sentence_with_the_remedy(machine):
    machine.setenv("BARE", "1")
    with pytest.raises(
        UserError, match="no Vulkan driver that draws .*: run `python -m polyarm.sim.sapien.swiftshader`"
    ):
        told()


def test_no_sapien_is_one_sentence_with_the_remedy(machine, tmp_path):
    (tmp_path / "sapien" / "__init__.py").write_text("import no_such_library_of_sapien")
    with pytest.raises(UserError, match=r"no_such_library.*: pip install 'polyarm\[sapien\]'"):
        told()


@pytest.fixture
def offline(monkeypatch):
    """Whoever reaches for the network or the keyboard fails, even where ManiSkill was told to download without asking."""

    def reached(*args, **kwargs):
        raise AssertionError("reached for the network or the keyboard")

    monkeypatch.setattr(socket, "socket", reached)
    monkeypatch.setattr("builtins.input", reached)
    monkeypatch.setenv("MS_SKIP_ASSET_DOWNLOAD_PROMPT", "1")


@sapien_here
@pytest.mark.parametrize("robot", ["xarm6_robotiq", "widowx250s", "ur_10e"])
def test_a_robot_that_would_be_downloaded_is_refused(robot, offline, monkeypatch, capsys):
    import gymnasium
    from mani_skill.agents.registration import REGISTERED_AGENTS

    agent = REGISTERED_AGENTS[robot].agent_cls
    monkeypatch.setattr(agent, "urdf_path" if agent.urdf_path else "mjcf_path", "/nowhere/robot.urdf")
    with pytest.raises(UserError, match=f"(?s)^[^\n]*{robot}.*download_asset {robot}`$"):
        gymnasium.make("PickCube-v1", robot_uids=robot, render_backend=vulkan.device())
    assert capsys.readouterr().out == "", "the sentence is all that is said"


@sapien_here
def test_every_robot_is_either_here_or_refused(offline):
    from mani_skill import format_path
    from mani_skill.agents.base_agent import BaseAgent
    from mani_skill.agents.registration import REGISTERED_AGENTS

    missing = 0
    for robot, spec in REGISTERED_AGENTS.items():
        cls = spec.agent_cls
        if Path(format_path(str(cls.urdf_path or cls.mjcf_path))).exists() or "_load_articulation" in vars(cls):
            continue
        missing += 1
        with pytest.raises(UserError, match=robot):
            BaseAgent._load_articulation(SimpleNamespace(uid=robot, urdf_path=cls.urdf_path, mjcf_path=cls.mjcf_path))
    assert missing or Path("~/.maniskill").expanduser().exists()


@sapien_here
@pytest.mark.parametrize(
    ("world", "asset"), [("PickSingleYCB-v1", "ycb"), ("TurnFaucet-v1", "partnet_mobility_faucet")]
)
def test_an_asset_that_would_be_downloaded_is_refused(world, asset, offline, monkeypatch, tmp_path, capsys):
    import gymnasium
    from mani_skill.utils import assets

    sources = (
        assets.expand_data_group_into_individual_data_source_ids(asset) if asset in assets.DATA_GROUPS else [asset]
    )
    for source in sources:
        monkeypatch.setattr(assets.DATA_SOURCES[source], "output_dir", tmp_path)
    with pytest.raises(UserError, match=f"(?s)^[^\n]*{asset}.*{world}.*download_asset {asset}`$"):
        gymnasium.make(world, render_backend=vulkan.device())
    assert capsys.readouterr().out == "" and not any(tmp_path.iterdir())


@sapien_here
def test_no_other_way_leads_to_a_download(offline, monkeypatch, tmp_path):
    import sapien.physx
    from mani_skill.utils import assets, download_asset

    with pytest.raises(UserError, match="nothing is downloaded"):
        download_asset.download(assets.DATA_SOURCES["ycb"])
    with pytest.raises(UserError, match="nothing is downloaded"):
        download_asset.prompt_yes_no("Shall I?")
    monkeypatch.setenv("HOME", str(tmp_path))
    if not sapien.physx.is_gpu_enabled():
        with pytest.raises(UserError, match="nothing is downloaded .*enable_gpu"):
            sapien.physx.enable_gpu()
    assert not any(tmp_path.iterdir())


@sapien_here
def test_maniskill_draws_on_the_device_that_was_found():
    from mani_skill.envs.utils.system import backend

    assert backend.parse_backend_device_id("pci:0000:03:00.0") == ("pci:0000:03:00.0", None)
    assert tuple(backend.parse_backend_device_id("cuda:1")) == ("cuda", "1")
    assert tuple(backend.parse_backend_device_id("cpu")) == ("cpu", None)
    found = backend.parse_sim_and_render_backend("physx_cpu", vulkan.device()).render_device
    assert found.can_render() and found.name == vulkan.driver()


@sapien_here
def test_a_red_box_is_drawn():
    picture = vulkan.draw()
    assert picture.shape == (64, 64, 3) and (picture[0, 0] == 0).all()
    red, green, blue = picture[32, 32].astype(int)
    assert red > green + 50 and green == blue


@pytest.mark.slow
@sapien_here
def test_the_quick_shaders_draw_the_same_to_the_bit(monkeypatch):
    import sapien

    quick = vulkan.draw()
    monkeypatch.setattr(vulkan, "_shaders", lambda: Path(sapien.__file__).parent / "vulkan_shader" / "minimal")
    assert (vulkan.draw() == quick).all()


@sapien_here
def test_shaders_are_made_once_and_healed(tmp_path, monkeypatch):
    monkeypatch.setattr(vulkan, "CACHE", str(tmp_path))
    folder = vulkan._shaders()
    files = {f: f.read_text() for f in folder.parent.rglob("*") if f.is_file()}
    assert files and folder.is_relative_to(tmp_path) and not any("samplerBRDFLUT" in text for text in files.values())
    kept, gone, *_ = files
    gone.write_text("")
    stamp = kept.stat().st_mtime_ns
    assert vulkan._shaders() == folder and kept.stat().st_mtime_ns == stamp
    assert {f: f.read_text() for f in tmp_path.rglob("*") if f.is_file()} == files, "healed, and nothing beside"
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(vulkan, "CACHE", str(tmp_path / "file"))
    elsewhere = vulkan._shaders()
    assert (elsewhere / next(iter(folder.iterdir())).name).exists() and not elsewhere.is_relative_to(tmp_path)


@sapien_here
def test_the_doctor_says_what_drew_and_nothing_else_is_said(capfd):
    import subprocess

    program = [sys.executable, "-m", "polyarm.sim.sapien.vulkan"]
    drawn = subprocess.run(program, check=False, capture_output=True, text=True)
    assert (drawn.returncode, drawn.stdout, drawn.stderr) == (0, f"{vulkan.driver()}, 64x64\n", "")
    assert doctor._sapien().endswith(f"draw with {vulkan.driver()}, 64x64") and capfd.readouterr() == ("", "")


@sapien_here
def test_the_doctor_names_a_wrong_driver(monkeypatch):
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere/icd.json")
    _, ok, found, remedy = doctor._try("SAPIEN", doctor._sapien, "")
    assert not ok and "VK_ICD_FILENAMES=/nowhere/icd.json" in found and remedy == "correct it or leave it out"


@pytest.mark.parametrize(
    ("dies", "said"), [("kill -SEGV $$", "crashes with SIGSEGV"), ("echo 'Error: no: x' >&2; exit 1", "Error: no: x")]
)
def test_a_driver_that_takes_its_process_with_it_is_reported(dies, said, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{dies}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(UserError, match=f"{said}.*: run `python -m"):
        swiftshader.tried()


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """(shell of apt-get, {package: names in it}) -> the folder where SwiftShader is brought, by those and no other programs."""
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    programs.mkdir()
    packages.mkdir()

    def apt(shell, contents):
        for package, names in contents.items():
            with tarfile.open(packages / package, "w") as tar:
                for name in names:
                    member = tarfile.TarInfo(f"./usr/lib/chromium/{name}")
                    member.size = len(name)
                    tar.addfile(member, io.BytesIO(name.encode()))
        scripts = {"apt-get": f"for last; do :; done; P={packages}; {shell}", "dpkg-deb": '/bin/cat "$2"'}
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(programs))
        return tmp_path / "brought"

    return apt


BOTH = [swiftshader.LIBRARY, vulkan.ICD]
DOWNLOAD = '[ "$last" = update ] || /bin/cp $P/$last $last.deb'
NO_LISTS = 'L=; for w; do case $w in -oDir::State::Lists=*) L=${w#*=};; esac; done; [ "$L" ] || exit 100; '
FETCHED = '[ "$last" != update ] || : > $L/here; [ -e $L/here ] || exit 100; '
"""apt-get of a machine without package lists: it downloads once they were fetched into a folder that it is given."""


@pytest.mark.parametrize(
    ("shell", "contents"),
    [
        (DOWNLOAD, {"chromium-common": ["chromium", *BOTH]}),
        (DOWNLOAD, {"chromium-common": BOTH[:1], "chromium-browser": ["README", *reversed(BOTH)]}),
        (NO_LISTS + FETCHED + DOWNLOAD, {"chromium": BOTH}),
    ],
)
def test_swiftshader_comes_out_of_a_package(shell, contents, apt):
    folder = apt(shell, contents)
    swiftshader.bring(folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == {name: name for name in BOTH}


@pytest.mark.parametrize(("shell", "contents"), [(DOWNLOAD, {"chromium-browser": ["README"]}), ("exit 100", {})])
def test_where_no_package_has_it_nothing_is_left(shell, contents, apt):
    folder = apt(shell, contents)
    with pytest.raises(UserError, match="none of chromium-common.*: install Chromium"):
        swiftshader.bring(folder)
    assert not folder.exists()


def test_where_there_is_no_apt_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get: install Chromium"):
        swiftshader.bring(tmp_path / "brought")
