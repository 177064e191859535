"""The training loop: a pruned student learns its dense teacher's last tokens, without labels.

B images, C channels, S side in pixels, T tokens, D width.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optimi
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from amp.config import DistillOutputSettings, OptimSettings
from amp.criteria import distillation_loss
from amp.data import Batches
from amp.distributed import World
from amp.errors import UserError
from amp.runs import atomic, check_same_run, progress, say
from amp.towers import TokenReadout, Tower

CHECKPOINT = "checkpoint.pt"


def rates(step: int, optim: OptimSettings, batch_size: int, steps_per_epoch: int) -> tuple[float, float]:
    """(learning rate, weight decay) of a step, counted from 0 (AMP, arXiv 2603.08100, section 4).

    The rate climbs linearly from 0 to base_lr * batch_size / 256, which the last warm-up step has, then falls on a
    cosine towards min_lr; the decay follows a cosine from weight_decay to weight_decay_end over all steps.
    """
    peak = optim.base_lr * batch_size / 256
    warmup, total = optim.warmup_epochs * steps_per_epoch, optim.epochs * steps_per_epoch
    if step < warmup:
        rate = peak * step / max(1, warmup - 1)
    else:
        rate = _cosine(peak, optim.min_lr, (step - warmup) / (total - warmup))
    return rate, _cosine(optim.weight_decay, optim.weight_decay_end, step / total)


def _cosine(start: float, end: float, share: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


def check_pair(teacher: Tower, student: Tower) -> None:
    """Raises UserError unless the student is the teacher's architecture with MLPs as wide or narrower."""
    if not student.same_architecture(teacher):
        raise UserError(
            f"student.pretrained: a pruned {student.base['name']!r}, the teacher is {teacher.base['name']!r}"
        )


@torch.no_grad()
def share_head(teacher: Tower, student: Tower, head: Collection[str]) -> None:
    """Gives the student the teacher's final norm and projection or head, frozen; frees all else of its tower.

    Args:
        head: paths of those parameters, as `amp.towers.after_last_block` finds them.
    """
    theirs = dict(teacher.visual.named_parameters())
    for name, parameter in student.visual.named_parameters():
        parameter.requires_grad_(name not in head)
        if name in head:
            parameter.copy_(theirs[name])


@dataclass
class Distiller:
    """One run: models, optimizer, schedule, log and checkpoint; resumes by itself from its folder.

    Args:
        teacher: dense, frozen. student: pruned, its head shared by `share_head`, fp32 or (pure_bf16) bf16 weights.
        header: settings of the run, recorded in the checkpoint; a checkpoint of other settings is refused.
    """

    teacher: Tower
    student: Tower
    batches: Batches
    optim: OptimSettings
    output: DistillOutputSettings
    header: Mapping[str, Any]
    world: World
    step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.folder = Path(self.output.dir)
        self.total_steps = self.optim.epochs * len(self.batches)
        self._teacher = TokenReadout(self.teacher)
        self._trained = {n: p for n, p in self.student.visual.named_parameters() if p.requires_grad}
        self._student: nn.Module = self.world.data_parallel(TokenReadout(self.student))
        self._optimizer = make_optimizer(list(self._trained.values()), self.optim)
        self._resume()

    def run(self) -> dict[str, float]:
        """Trains to the end. Returns the last step's losses."""
        last: dict[str, float] = {}
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step) if self.world.is_main else None
        bar = progress(self._remaining(), "distil", "step", total=self.total_steps, initial=self.step)
        with self._open_log() as log:
            for images_BCHW in bar:
                last = self._train_step(images_BCHW)
                if writer is not None:
                    log.write(json.dumps(last) + "\n")
                    if last["step"] % self.output.log_every == 0 or self.step == self.total_steps:
                        for key in ("loss", "loss_cls", "loss_patch", "lr", "weight_decay"):
                            writer.add_scalar(key, last[key], int(last["step"]))
                bar.set_postfix_str(f"loss {last['loss']:.4g} lr {last['lr']:.2g}")
                if self.step % self.output.save_every == 0 and self.step < self.total_steps:
                    log.flush()
                    self._save()
        if writer is not None:
            writer.close()
        return last

    def _remaining(self) -> Iterator[Tensor]:
        first, start = divmod(self.step, len(self.batches))
        for epoch in range(first, self.optim.epochs):
            yield from self.batches.epoch(epoch, start if epoch == first else 0)

    def _train_step(self, images_BCHW: Tensor) -> dict[str, float]:
        lr, weight_decay = rates(self.step, self.optim, self.batches.settings.batch_size, len(self.batches))
        for group in self._optimizer.param_groups:
            group.update(lr=lr, weight_decay=weight_decay)
        images_BCHW = images_BCHW.to(self.world.device, non_blocking=True)
        with torch.inference_mode(), self._autocast():
            target_BTD = self._teacher(images_BCHW.to(self.teacher.dtype))
        with self._autocast():
            tokens_BTD = self._student(images_BCHW.to(next(iter(self._trained.values())).dtype))
        losses = distillation_loss(tokens_BTD, target_BTD, self.teacher.num_prefix_tokens)
        losses[0].backward()
        loss, loss_cls, loss_patch = (self.world.sum(torch.stack(losses).detach()) / self.world.size).tolist()
        if not math.isfinite(loss):
            kept = self.folder / CHECKPOINT
            raise RuntimeError(
                f"loss is {loss} at step {self.step}; last good checkpoint: {kept if kept.exists() else 'none'}"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return {
            "step": self.step - 1,
            "loss": loss,
            "loss_cls": loss_cls,
            "loss_patch": loss_patch,
            "lr": lr,
            "weight_decay": weight_decay,
        }

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.optim.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    def _open_log(self) -> Any:
        """log.jsonl, cut back to the steps before this one; the main process's."""
        path = self.folder / "log.jsonl"
        if not self.world.is_main:
            return open("/dev/null", "w", encoding="utf-8")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with atomic(path) as partial:
            partial.write_text("".join(lines[: self.step]), encoding="utf-8")
        return path.open("a", encoding="utf-8")

    def _save(self) -> None:
        if self.world.is_main:
            state = {
                "header": json.dumps(self.header),
                "step": self.step,
                "student": self._trained,
                "optimizer": self._optimizer.state_dict(),
            }
            with atomic(self.folder / CHECKPOINT) as partial:
                torch.save(state, partial)
        self.world.barrier()

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        check_same_run(path, json.loads(state["header"]), self.header)
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state["student"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        say(f"resuming after step {self.step} of {self.total_steps} from {path}")


def make_optimizer(parameters: list[nn.Parameter], optim: OptimSettings) -> torch.optim.Optimizer:
    """AdamW over all parameters alike; for pure_bf16 with Kahan-summed bf16 weights and moments."""
    if optim.precision == "pure_bf16":
        return optimi.AdamW(parameters, lr=0.0, betas=optim.betas, eps=1e-8, weight_decay=0.0, kahan_sum=True)
    return torch.optim.AdamW(parameters, lr=0.0, betas=optim.betas, eps=1e-8, weight_decay=0.0)
