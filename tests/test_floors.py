"""The floors of the house: a module imports only from floors below. Docs: CONTRIBUTING.md.

A mutation that turns this red: `import polyarm.policies.policy` anywhere in encoders/.
"""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent

FLOORS = {
    "spec": 1, "camera": 1, "cloud": 1, "derive": 1, "keypose": 1, "rotation": 1, "relative": 1, "text": 1, "lock": 1, "config": 1, "progress": 1, "log": 1, "stop": 1,
    "streams": 1, "choices": 1, "words": 1, "grammar": 1, "ranges": 1, "trust": 1,
    "datasets": 2, "sim": 2,
    "encoders": 3, "policies.generate": 3, "real_robot": 3,
    "policies": 4,
    "learner": 5, "train": 5, "job": 5, "resume": 5, "eval": 5, "collect": 5, "record": 5, "task": 5,
    "api": 6, "sweep": 6, "bench": 6, "commands": 6, "cli": 6,
}  # fmt: skip
TOGETHER = {1, 5, 6}
"""Floors whose rooms may use each other; on the others they may not."""
TORCHLESS = (
    "spec",
    "camera",
    "cloud",
    "derive",
    "trust",
    "rotation",
    "relative",
    "text",
    "lock",
    "config",
    "streams",
    "choices",
    "words",
    "grammar",
    "ranges",
    "progress",
    "cli",
    "commands",
    "sim",
    "real_robot",
    "collect",
)
FOLDERS = ("policies", "encoders", "datasets", "sim", "real_robot", "configs", "eval")


def modules():
    """(dotted name below polyarm, file) of every module."""
    for folder in FOLDERS:
        for file in sorted((REPO / folder).rglob("*.py")):
            yield ".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"), file
    ours = REPO / "src" / "polyarm"
    packages = [p for p in ours.iterdir() if p.is_dir() and not p.is_symlink() and (p / "__init__.py").exists()]
    for file in sorted([*ours.glob("*.py"), *(f for p in packages for f in p.rglob("*.py"))]):
        if file != ours / "__init__.py":
            yield ".".join(file.relative_to(ours).with_suffix("").parts).removesuffix(".__init__"), file


def room(name: str) -> str | None:
    """The longest entry of FLOORS that `name` lies in."""
    fits = [key for key in FLOORS if name == key or name.startswith(key + ".")]
    return max(fits, key=len) if fits else None


def imports(file: Path) -> list[tuple[str, bool]]:
    """(dotted name, at module level) of everything a file imports."""
    tree = ast.parse(file.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.relative_to(REPO)} imports relatively: write polyarm.<folder>"
            found += [(node.module or "", id(node) in top)]
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def complaint(name: str, imported: str) -> str | None:
    """The sentence a person needs, or None if the import is fine."""
    here, there = room(name), room(imported)
    if here is None:
        return f"{name} has no floor: give it one in tests/test_floors.py"
    if there is None or here == there:
        return None
    if FLOORS[here] < FLOORS[there]:
        return f"{name} imports {imported}: {here} is below {there}"
    if FLOORS[here] == FLOORS[there] and FLOORS[here] not in TOGETHER:
        return f"{name} imports {imported}: {here} and {there} share a floor and do not use each other"
    return None


@pytest.mark.parametrize("name, file", list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_go_down(name, file):
    if name == "configs":
        return
    ours = [i.removeprefix("polyarm.") for i, _ in imports(file) if i.startswith("polyarm.")]
    found = [c for imported in ours if (c := complaint(name, imported))]
    assert not found, found[0]


@pytest.mark.parametrize("name, file", list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_worlds_and_drivers_do_not_load_torch(name, file):
    if room(name) in TORCHLESS:
        loaded = [i for i, top in imports(file) if top and i.split(".")[0] in ("torch", "torchvision", "diffusers")]
        assert not loaded, f"{name} imports {loaded[0]} at its top: import it in the function that needs it"


def test_policies_do_not_import_policies():
    """One policy, one file: what two share lives in nets, policy.py or the kernel."""
    shared = {"policy", "nets", "checkpoint", "generate", "__init__"}
    names = {f.stem for f in (REPO / "policies").glob("*.py")} - shared
    for name in names:
        for imported, _ in imports(REPO / "policies" / f"{name}.py"):
            parts = imported.split(".")
            assert not (parts[:2] == ["polyarm", "policies"] and parts[2:] and parts[2] in names), (
                f"{name} imports {imported}"
            )


def test_the_rules_can_fail():
    assert (
        complaint("encoders.points", "policies.actor3d")
        == "encoders.points imports policies.actor3d: encoders is below policies"
    )
    assert complaint("sim.vector", "datasets.store")
    assert complaint("policies.nets", "policies.generate.angle") is None
    assert complaint("nowhere.new", "spec")
