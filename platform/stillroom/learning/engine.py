"""Forward, backward, reduce, clip, step, save and load: in plain torch, or by DeepSpeed.

The only file that imports DeepSpeed. Both engines mean the same by a step: the gradients of all
backwards since the last one are added up, averaged over the workers, clipped to a global norm, and
applied with AdamW.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist

from stillroom.learning import checkpoint
from stillroom.learning.checkpoint import KINDS, WEIGHT
from stillroom.learning.gather import world

Offload = Literal["none", "optimizer", "parameters"]


class Engine(Protocol):
    @property
    def forward(self) -> Callable[..., torch.Tensor]: ...

    @property
    def device(self) -> torch.device: ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the loss's gradients to those of this step.

        Args:
            last: nothing more comes before `step`; said of one backward a step, on every worker.
        """

    def step(self, learning_rate: float) -> float:
        """Applies one update; returns the gradient's norm before clipping."""

    def save(self, folder: Path, step: int) -> None:
        """Writes this worker's share of a checkpoint after so many steps; called on every one."""

    def load(self, folder: Path) -> int:
        """Takes up a checkpoint of any engine and any number of workers; returns its steps."""

    def trained(self) -> dict[str, torch.Tensor]:
        """Whole trained tensors by name, on the CPU; called on every worker."""


def adamw(
    module: torch.nn.Module, weight_decay: float, *, fused: bool | None = None
) -> torch.optim.AdamW:
    """AdamW over what is trained; biases, norms and other vectors are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=fused)


class TorchEngine:
    """One process, or several with their gradients averaged by hand."""

    def __init__(self, module: torch.nn.Module, *, weight_decay: float, clip: float):
        self.module, self.clip = module, clip
        self.forward = module
        self.parameters = [p for _, p in _trained(module)]
        self.tables = _embeddings(module)
        # One pass over the weights where the plain one makes ten.
        self.optimizer = adamw(module, weight_decay, fused=True)
        _begin(self.optimizer, self.parameters)
        _same_start(self.parameters)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        if world()[1] > 1:
            self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _average_gradients(self) -> None:
        """Over the workers. Of embeddings only rows travel that some worker's texts have: they are
        most of a small encoder's weights, and a batch has few of them."""
        gradients = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters}
        rows = _touched([gradients[p] for p in self.tables])
        of = dict(zip(self.tables, rows, strict=True))
        parts = [gradients[p][of.get(p, ...)] for p in self.parameters]
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        flat /= world()[1]
        means = flat.split([part.numel() for part in parts])
        for p, part, mean in zip(self.parameters, parts, means, strict=True):
            gradients[p][of.get(p, ...)] = mean.view_as(part)
            p.grad = gradients[p]

    def save(self, folder: Path, step: int) -> None:
        whole = functools.partial(_held, self.optimizer)
        checkpoint.write(folder, step, _each(self.module, whole))

    def load(self, folder: Path) -> int:
        step, saved = checkpoint.read(folder)
        _go_on(self.optimizer, step)
        for name, p in _trained(self.module):
            for kind in KINDS:
                _held(self.optimizer, p, kind).copy_(saved(f"{kind}.{name}"))
        return step

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().cpu().clone() for name, p in _trained(self.module)}


class DeepSpeedEngine:
    """ZeRO stages 0 to 3. Needs a process group and, on a CPU, g++ and ninja.

    Args:
        offload: what lies in main memory instead of the GPU's: the optimizer with the float32
            copy of what is trained (stages 1 to 3), or every parameter as well (stage 3).
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        weight_decay: float,
        clip: float,
        zero_stage: int,
        batch_per_worker: int,
        offload: Offload = "none",
    ):
        import deepspeed

        size = sum(p.numel() for _, p in _trained(module))
        # By default the buffer that gradients are reduced in has 2 GB, however few there are.
        zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": min(size, 500_000_000)}
        if offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if offload == "parameters":
            zero["offload_param"] = {"device": "cpu"}
        self.module, self.zero_stage = module, zero_stage
        # Where it offloads, DeepSpeed's own count of backwards drops the gradients of weights that
        # a step's last one does not reach; what it does uncounted adds up every one.
        self.counts = offload == "none"
        # What is offloaded the CPU updates. There torch's fused AdamW is as fast as DeepSpeed's
        # own, ten times the plain one, and needs no compiler with CUDA's toolkit.
        self.optimizer = adamw(module, weight_decay, fused=offload != "none" or None)
        self.engine: Any = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            model_parameters=[p for _, p in _trained(module)],
            config={
                "train_micro_batch_size_per_gpu": batch_per_worker,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": clip,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "managed_gradient_accumulation": self.counts,
                "steps_per_print": 10**9,
            },
        )[0]
        self.forward = self.engine
        _begin(self.optimizer, self._updated())
        if zero_stage in (1, 2):
            # So that moments can be found by parameter. It would do so itself after a first step,
            # but within that of the first group of parameters, and never see the others'.
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def device(self) -> torch.device:
        return torch.device(self.engine.device)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        # Said before each backward: plain repeated ones are silently wrong under ZeRO 1 and 2.
        if self.counts:
            self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        # ZeRO swaps the tensors inside the optimizer's groups but keeps the groups themselves.
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.zero_stage == 0:  # where DeepSpeed does not tell
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self.engine.step()
        # A weight that the next step's first backward does not reach would keep this step's
        # gradient, and have the next one added to it.
        if self.zero_stage == 3:
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()
        elif not self.counts:
            for gradient in self.engine.optimizer.accumulated_grads_in_cpu.values():
                gradient.zero_()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def save(self, folder: Path, step: int) -> None:
        checkpoint.write(folder, step, _each(self.module, self._whole))

    def load(self, folder: Path) -> int:
        import deepspeed

        step, saved = checkpoint.read(folder)
        _go_on(self.optimizer, step)
        for name, p in _trained(self.module):
            # ZeRO updates a copy in float32, of which the model's own weights are made after steps.
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
                p.data.copy_(saved(f"{WEIGHT}.{name}"))
            for kind in KINDS:
                self._put(p, kind, saved(f"{kind}.{name}"))
        return step

    def _updated(self) -> list[torch.Tensor]:
        """What AdamW updates on this worker: parameters, or from ZeRO 1 on its slices of them."""
        if self.zero_stage == 0:
            return [p for _, p in _trained(self.module)]
        if self.zero_stage == 3:
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return list(self.engine.optimizer.single_partition_of_fp32_groups)

    def _whole(self, p: Any, kind: str) -> torch.Tensor:
        """A weight or a moment of it; called on every worker."""
        if self.zero_stage == 0:
            return _held(self.optimizer, p, kind)
        moment = None if kind == WEIGHT else kind
        whole: torch.Tensor = (
            self.engine.optimizer.get_full_hp_param(p, moment)
            if self.zero_stage == 3
            else p.get_full_hp_param(moment)
        )
        return whole

    def _put(self, p: Any, kind: str, whole: torch.Tensor) -> None:
        """Into this worker's slice of a weight or a moment."""
        moment = None if kind == WEIGHT else kind
        if self.zero_stage == 0:
            _held(self.optimizer, p, kind).copy_(whole)
        elif self.zero_stage == 3:
            # DeepSpeed would cut it, too, but for a tensor that workers cannot share evenly.
            size = p.ds_tensor.numel()
            mine = whole.flatten()[world()[0] * size :][:size]
            padded = torch.nn.functional.pad(mine, (0, size - len(mine)))
            self.engine.optimizer.set_local_hp_param(padded, p, moment)
        else:
            p.set_full_hp_param(whole, moment)

    def trained(self) -> dict[str, torch.Tensor]:
        import deepspeed

        whole = {}
        for name, p in _trained(self.module):
            # Under ZeRO-3 a worker holds a slice; reading it plainly gives an empty tensor.
            with deepspeed.zero.GatheredParameters([p]):
                whole[name] = p.detach().cpu().clone()
        return whole


def _trained(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _embeddings(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Tables of vectors, one a token or position, that are trained."""
    tables = {m.weight for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    return [p for _, p in _trained(module) if p in tables]


def _touched(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of each table the rows that some worker has, the same on all of them."""
    if not gradients:
        return []
    touched = torch.cat([gradient.any(dim=1) for gradient in gradients]).byte()
    dist.all_reduce(touched, op=dist.ReduceOp.MAX)
    return [part.nonzero()[:, 0] for part in touched.split([len(g) for g in gradients])]


def _each(
    module: torch.nn.Module, whole: Callable[[torch.nn.Parameter, str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds, one tensor after another."""
    return ((f"{kind}.{name}", whole(p, kind)) for name, p in _trained(module) for kind in KINDS)


def _held(optimizer: torch.optim.AdamW, p: torch.nn.Parameter, kind: str) -> torch.Tensor:
    """A weight or a moment of it, where every worker holds the whole."""
    return p.detach() if kind == WEIGHT else optimizer.state[p][kind]


def _begin(optimizer: torch.optim.AdamW, updated: list[Any]) -> None:
    """Gives AdamW the state that its first step would make."""
    fused = optimizer.defaults["fused"]
    for p in updated:
        moments = {kind: torch.zeros_like(p) for kind in KINDS if kind != WEIGHT}
        # The fused kernel counts where the weights are, the others on the CPU.
        step = torch.zeros((), device=p.device if fused else "cpu")
        optimizer.state[p] = {"step": step, **moments}


def _go_on(optimizer: torch.optim.AdamW, step: int) -> None:
    """Tells AdamW that so many steps were made."""
    for state in optimizer.state.values():
        state["step"].fill_(step)


def _same_start(parameters: list[torch.nn.Parameter]) -> None:
    """All workers begin with the first one's weights."""
    if world()[1] > 1:
        for p in parameters:
            dist.broadcast(p.data, src=0)
