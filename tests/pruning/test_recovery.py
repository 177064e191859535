"""Laws of the recovery."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amp
from amp.pruning.recovery import Recovery
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.towers import Tower, build_tower

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def build(precision: str = "fp32") -> Tower:
    torch.manual_seed(1)
    return build_tower(
        ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=SMALL, precision=precision)  # type: ignore[arg-type]
    )


def images(count: int, seed: int = 0) -> list[Tensor]:
    coarse = torch.randn(count, 8, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return [F.interpolate(batch, 32, mode="bilinear") for batch in coarse]


def features(tower: Tower, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([F.normalize(tower.feature(batch.to(tower.dtype)).float(), dim=1) for batch in batches])


def sliced(tower: Tower) -> None:
    for slot in tower.slots:
        slot.keep(torch.arange(slot.hidden_width // 2))


def test_images_that_are_no_whole_batch_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for asked, said in ((20, "prune.recover_images: 20; only 16 are used (full batches of 8)"), (16, "")):
        Recovery(build(), images(4), SearchSettings(recover_steps=1, recover_images=asked))
        out = capsys.readouterr().out
        assert (said in out) == bool(out or not said)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_of_other_images_come_closer(precision: str) -> None:
    tower, other = build(precision), images(4, seed=1)
    dense = features(tower, other)
    recovery = Recovery(tower, images(6), SearchSettings(recover_steps=20))
    sliced(tower)
    before = features(tower, other)
    recovery.run()
    assert (features(tower, other) * dense).sum(1).mean() > (before * dense).sum(1).mean()
    assert all(p.dtype == tower.dtype and not p.requires_grad and p.grad is None for p in tower.visual.parameters())


def test_steps_can_be_undone() -> None:
    tower = build()
    recovery = Recovery(tower, images(4), SearchSettings(recover_steps=3))
    before = {key: value.clone() for key, value in tower.visual.state_dict().items()}
    recovery.run()
    recovery.undo()
    assert all(torch.equal(before[key], value) for key, value in tower.visual.state_dict().items())


def test_a_recovery_that_is_not_asked_for_decides_nothing() -> None:
    plain, recovered = SearchSettings(), SearchSettings(recover_steps=1)
    assert "recover_steps" not in plain.decisive()
    assert recovered.decisive()["recover_steps"] == 1


@pytest.mark.slow
def test_a_call_recovers_and_says_so() -> None:
    tower = build()
    pruned = amp.prune(
        tower.visual, torch.cat(images(12)), params=0.8, batch_size=16, compensation="none", recover_steps=5
    )
    before, after = (pruned.report.record[f"feature_cosine{key}"] for key in ("_before_recovery", ""))
    assert after >= before
    assert f"{before:.4f} before the recovery" in str(pruned.report)


@pytest.mark.slow
def test_steps_that_end_in_no_numbers_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amp.pruning.recovery.recovery.DEEP", float("nan"))
    pruned = amp.prune(
        build().visual, torch.cat(images(12)), params=0.8, batch_size=16, compensation="none", recover_steps=2
    )
    assert all(p.isfinite().all() for p in pruned.model.parameters())
    assert pruned.report.feature_cosine == pruned.report.feature_cosine_before_recovery
