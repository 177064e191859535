"""A student is of its teacher's architecture, and has its head."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN

from amp.distillation import share_head
from amp.distillation.students import check_architecture
from amp.errors import UserError
from amp.models.folder import load_tower
from amp.settings.distill import DistillConfig
from amp.settings.model import ModelSettings
from amp.settings.reading.yaml_files import load_config
from amp.towers import Tower, after_last_block, build_tower

HEAD = {"ln_post.weight", "ln_post.bias", "proj"}


def _pair(distill_yaml: Path) -> tuple[DistillConfig, Tower, Tower]:
    config = load_config(DistillConfig, distill_yaml)
    return config, build_tower(config.teacher.as_model("fp32")), load_tower(config.student.pretrained)


@pytest.mark.slow
def test_student_keeps_the_teachers_head(distill_yaml: Path) -> None:
    config, teacher, student = _pair(distill_yaml)
    with torch.no_grad():
        for parameter in student.visual.ln_post.parameters():
            parameter.add_(1)
    share_head(teacher, student, HEAD)
    assert after_last_block(build_tower(config.teacher.as_model("fp32"), "meta")) == HEAD
    frozen = {name for name, p in student.visual.named_parameters() if not p.requires_grad}
    assert frozen == HEAD
    for name in frozen:
        assert torch.equal(student.visual.get_parameter(name), teacher.visual.get_parameter(name))
    assert not any(p.requires_grad for n, p in student.model.named_parameters() if not n.startswith("visual."))


def test_student_of_another_model_is_refused(distill_yaml: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call("distill.py", "--config_file", distill_yaml, "--set", "teacher.name=ViT-S-32-alt")
    assert code == 2
    assert err.count("\n") == 1
    assert "teacher.pretrained" in err


def test_pair_of_two_architectures_is_refused(distill_yaml: Path, tmp_path: Path) -> None:
    _, _, student = _pair(distill_yaml)
    other = json.loads((GOLDEN / "tiny-clip.json").read_text())
    other["vision_cfg"]["layers"] = 4
    (tmp_path / "other.json").write_text(json.dumps(other))
    teacher = build_tower(ModelSettings(frame="open_clip", name=str(tmp_path / "other.json")))
    with pytest.raises(UserError, match=r"student.pretrained: .*tiny-clip.json.* the teacher .*other.json"):
        check_architecture(teacher, student)


@pytest.mark.slow
def test_wider_student_and_another_library_are_refused(distill_yaml: Path) -> None:
    config, _, student = _pair(distill_yaml)
    narrow = build_tower(config.teacher.as_model("fp32"))
    narrow.slots[3].keep(torch.arange(2))
    with pytest.raises(
        UserError, match=r"student.pretrained: transformer.resblocks.3: \d+ hidden neurons, .* has only 2$"
    ):
        check_architecture(narrow, student)
    other = replace(student, base={**student.base, "frame": "timm"})
    with pytest.raises(UserError, match="its frame is 'open_clip', the teacher's is 'timm'"):
        check_architecture(other, student)


def test_images_of_another_kind_are_refused_and_the_remedy_helps(distill_yaml: Path) -> None:
    config, plain, student = _pair(distill_yaml)
    student.preprocess["mean"] = (0.5, 0.25, 0.75)
    with pytest.raises(UserError, match=r"set teacher\.transform"):
        check_architecture(plain, student)
    said = load_config(DistillConfig, distill_yaml, ["teacher.transform.mean=[0.5, 0.25, 0.75]"])
    check_architecture(build_tower(said.dense, "meta"), student)
    assert "transform" not in config.decisive()["teacher"]
    assert said.decisive()["teacher"]["transform"]["mean"] == [0.5, 0.25, 0.75]
