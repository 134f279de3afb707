"""`polyarm train --multirun`: hydra's own sweep, its launchers included; every job has a folder of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from polyarm.config import ROOT, Hydra, drop, hydra, read_yaml, settle
from polyarm.grammar import NESTED, hydra_word, setting
from polyarm.progress import waiting
from polyarm.spec import UserError


@dataclass(frozen=True)
class Sweep:
    """`words`: hydra's; `dropped`: settings to leave out of every job; `jobs`: a name for each by what others do not have, and
    its folder, where `folder` is that of them all."""

    words: tuple[str, ...]
    dropped: tuple[str, ...]
    jobs: dict[str, str]
    folder: str

    @classmethod
    def of(cls, settings: Sequence[str]) -> Sweep:
        """Of the words of a command line. What is wrong in one job is said before the first starts."""
        with hydra() as h:
            plain = h.plain()
            words = _parsed([hydra_word(word, plain, sweep=True) for word in settings])
            dropped = tuple(
                w.key_or_group for w in words if w.is_delete() and w.value() is None
            )  # hydra would ask their value
            words = [w for w in words if w.key_or_group not in dropped]
            jobs = _split([w for w in words if not w.is_hydra_override()])
            names = [f"job {i} ({_differs(job, jobs)})" for i, job in enumerate(jobs)]
            composed = [_settled(h, job, dropped, name, plain) for job, name in zip(jobs, names, strict=True)]
            folder = _folder(h, [w for w in words if w.is_hydra_override()])
            if any(w.key_or_group == "output_dir" for w in words):
                folders = [c.output_dir for c in composed]
                if len(set(folders)) < len(jobs):
                    raise UserError(
                        f"output_dir={folders[0]} is one folder for {len(jobs)} jobs: give hydra.sweep.dir=... instead, in which "
                        "each has its own"
                    )
            else:
                folders = _places(Path(folder), composed)
            lines = [str(w.input_line) for w in words if w.key_or_group != "hydra.sweep.dir"]
            lines.append(hydra_word(setting("hydra.sweep.dir", folder), plain))
            return cls(tuple(lines), dropped, dict(zip(names, folders, strict=True)), folder)

    def run(self, trusted: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
        """(folders of the jobs that are done, {job: why it failed}). A job that fails does not stop the others."""
        job = partial(_job, tuple(self.jobs.values()), self.dropped, tuple(trusted))
        with waiting("loading torch", "torch"), hydra() as h:
            import polyarm.train  # noqa: F401

            batches = GlobalHydra.instance().hydra.multirun(
                ROOT, job, [*self.words, *h.searchpath()], with_log_configuration=False
            )
        results = [r.return_value for batch in batches for r in batch]
        done = [r["output_dir"] for r in results if "output_dir" in r]
        return done, {name: r["error"] for name, r in zip(self.jobs, results, strict=True) if "error" in r}


def _job(folders: Sequence[str], dropped: Sequence[str], trusted: Sequence[str], config: DictConfig) -> dict[str, str]:
    """One job, in this process or where a launcher put it: {"output_dir": ...}, or {"error": a sentence}."""
    from polyarm.cli import sentence
    from polyarm.train import fit
    from polyarm.trust import trust

    trust(*trusted)
    try:
        config.output_dir = folders[int(HydraConfig.get().job.num)]
        with hydra() as h:
            plain = h.plain()
        out = str(fit(settle(config, plain, dropped)))
        print(f"trained: {out}", file=sys.stderr, flush=True)
        return {"output_dir": out}
    except Exception as e:  # noqa: BLE001  the other jobs go on; this one says why it did not
        said = sentence(e)
        if said is None:
            traceback.print_exc()
        said = said or f"{type(e).__name__}: {e}"
        print(f"failed:  {said}", file=sys.stderr, flush=True)
        return {"error": said}


def _parsed(words: Sequence[str]) -> list[Override]:
    return OverridesParser.create(config_loader=GlobalHydra.instance().hydra.config_loader).parse_overrides(list(words))


def _split(words: Sequence[Override]) -> list[list[str]]:
    """The words of each job."""
    for word in words:
        if word.is_interval_sweep():
            raise UserError(f"{word.input_line} has no end of values: give choice(...) or range(...)")
    jobs = BasicSweeper.split_arguments(list(words), None)[0]
    if not jobs:
        raise UserError(f"{' '.join(str(w.input_line) for w in words)} is a sweep of nothing: name at least one value")
    return jobs


def _settled(h: Hydra, job: Sequence[str], dropped: Sequence[str], name: str, plain: DictConfig) -> DictConfig:
    try:
        return settle(h.compose(job), plain, dropped)
    except UserError as e:
        raise UserError(f"{name}: {e}") from e


def _folder(h: Hydra, words: Sequence[Override]) -> str:
    """hydra.sweep.dir as it is now: the time in it is told once, so that the sweep can be gone on with."""
    found = GlobalHydra.instance().hydra.compose_config(
        ROOT, [*(str(w.input_line) for w in words), *h.searchpath()],
        run_mode=RunMode.MULTIRUN, from_shell=False, with_log_configuration=False,
    )  # fmt: skip
    return str(found.hydra.sweep.dir)


def _places(folder: Path, jobs: Sequence[DictConfig]) -> list[str]:
    """A numbered folder for each job: that of its run if it has begun, else the next that no other run has."""
    runs = {int(f.parent.name): read_yaml(f) for f in folder.glob("*/config.yaml") if f.parent.name.isdecimal()}
    found: list[int] = []
    for config in jobs:
        own = (i for i in sorted(runs) if i not in found and _same_run(runs[i], config))
        found.append(next(own, -1))
    free = (i for i in count() if i not in runs and i not in found)
    return [str(folder / str(next(free) if i < 0 else i)) for i in found]


def _same_run(old: DictConfig, new: DictConfig) -> bool:
    from polyarm.resume import MAY_CHANGE

    one, other = old.copy(), new.copy()
    drop(one, *MAY_CHANGE)
    drop(other, *MAY_CHANGE)
    return one == other


def _differs(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    common = set(job).intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    plainly = {theirs: ours for ours, theirs in NESTED.items()}
    own = [word.partition("=") for word in job if word not in common]
    return " ".join(plainly.get(key, key) + equals + value for key, equals, value in own)
