"""Bad input of training: one sentence with the value, what was expected and the remedy, before anything is written.

A mutation that turns it red: claim the output folder before the policy is built.
"""

import pytest

from polyarm.config import compose
from polyarm.spec import UserError
from polyarm.train import fit

FORMS = "policy.form._target_=polyarm.policies.generate.forms."


@pytest.mark.parametrize(
    "words, message",
    [
        (["policy=flwo"], "unknown policy 'flwo': did you mean 'flow'? known are actor3d"),
        (["body=unett"], "unknown body 'unett': did you mean 'unet'?"),
        (["encoder=scrach"], "unknown encoder 'scrach': did you mean 'scratch'?"),
        (["sampler=dimm"], "unknown sampler 'dimm': did you mean 'ddim'?"),
        ([f"{FORMS}Flw"], "unknown name in polyarm.policies.generate.forms 'Flw': did you mean 'Flow'?"),
        (["policy.form._target_=polyarm.nowhere.Flow"], "there is no module 'polyarm.nowhere'; give the dotted name"),
        (["policy.form.predict=velocty"], "unknown prediction 'velocty': did you mean 'velocity'?"),
        (["body=unet", "policy.horizon=15"], "horizon 15 cannot be halved 2 times by a U-Net of 3 levels"),
        (["policy.n_action_steps=16"], "give at most 15 (horizon - n_obs_steps + 1), or a longer horizon"),
        (["policy.n_obs_steps=20"], "give a longer horizon"),
        (["policy=beso", "policy.goal_steps=1", "policy.goal_channels=[99]"], "with 13 features: give 0 to 12"),
        (["policy=consistency"], "policy.teacher=null, but this objective is taught: give the output_dir"),
        (["policy=meanflow", "sampler=heun"], "an average velocity has no meaning: give sampler=euler"),
        (["task.action_relative=joint_poss"], "unknown observation stream 'joint_poss': did you mean 'joint_pos'?"),
        (["train.device=gpu"], "train.device=gpu: give auto, cpu or cuda"),
    ],
)
def test_is_refused_before_anything_is_written(demos, tmp_path, words, message):
    with pytest.raises(UserError) as refused:
        fit(compose([f"task.demos.path={demos}", f"output_dir={tmp_path}/run", *words]))
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()
