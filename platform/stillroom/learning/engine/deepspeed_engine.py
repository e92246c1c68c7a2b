"""Training with DeepSpeed, ZeRO stages 0 to 3. The only file that imports DeepSpeed."""

from pathlib import Path
from typing import Any

import torch

from stillroom.learning.engine import checkpoint
from stillroom.learning.engine.checkpoint import TENSOR_KINDS, WEIGHT
from stillroom.learning.engine.interface import Offload
from stillroom.learning.engine.state import (
    adamw,
    checkpoint_tensors,
    init_optimizer_state,
    set_step_count,
    trained_parameters,
    weight_or_moment,
)
from stillroom.learning.gather import current_shard


class DeepSpeedEngine:
    """DeepSpeed's ZeRO as an `Engine`. Needs a process group.

    Args:
        max_grad_norm: the gradient's global norm is clipped to it.
        batch_per_worker: required by DeepSpeed; nothing here depends on it.
        offload: what is in main memory instead of the GPU's: the optimizer with the float32 copy of
            the trained weights (stages 1 to 3), or every parameter as well (stage 3).
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        weight_decay: float,
        max_grad_norm: float,
        zero_stage: int,
        batch_per_worker: int,
        offload: Offload = "none",
    ):
        import deepspeed

        # On a CPU it would compile an extension for a collective that only inference uses: a minute
        # once per installation, and a compiler that not every machine has.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        size = sum(p.numel() for _, p in trained_parameters(module))
        # By default the buffer that gradients are reduced in has 2 GB, however few they are.
        zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": min(size, 500_000_000)}
        if offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if offload == "parameters":
            zero["offload_param"] = {"device": "cpu"}
        self.module, self.zero_stage = module, zero_stage
        # With offloading, DeepSpeed's own count of backwards drops the gradients of weights that a
        # step's last backward does not reach; without the count it sums all of them.
        self.counts_backwards = offload == "none"
        # The CPU updates offloaded weights. There torch's fused AdamW is as fast as DeepSpeed's
        # own, ten times the plain one, and needs no compiler with CUDA's toolkit.
        self.optimizer = adamw(module, weight_decay, fused=offload != "none" or None)
        self.engine: Any = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            model_parameters=[p for _, p in trained_parameters(module)],
            config={
                "train_micro_batch_size_per_gpu": batch_per_worker,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": max_grad_norm,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "managed_gradient_accumulation": self.counts_backwards,
                "steps_per_print": 10**9,
            },
        )[0]
        self.forward = self.engine
        init_optimizer_state(self.optimizer, self._updated_tensors())
        if zero_stage in (1, 2):
            # Lets moments be looked up by parameter. DeepSpeed would do so after a first step,
            # but while it updates the first group of parameters, and never reach the other groups.
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def device(self) -> torch.device:
        return torch.device(self.engine.device)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        # Set before each backward: repeated backwards without it are silently wrong under ZeRO 1
        # and 2.
        if self.counts_backwards:
            self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        # ZeRO swaps the tensors inside the optimizer's groups but keeps the groups themselves.
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.zero_stage == 0:  # for which DeepSpeed does not report it
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self.engine.step()
        # Otherwise a weight that the next step's first backward does not reach would keep this
        # step's gradient, and the next one would be added to it.
        if self.zero_stage == 3:
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()
        elif not self.counts_backwards:
            for gradient in self.engine.optimizer.accumulated_grads_in_cpu.values():
                gradient.zero_()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def save(self, folder: Path, step: int) -> None:
        checkpoint.write_checkpoint(folder, step, checkpoint_tensors(self.module, self._whole))

    def load(self, folder: Path) -> int:
        import deepspeed

        step, saved = checkpoint.read_checkpoint(folder)
        set_step_count(self.optimizer, step)
        for name, p in trained_parameters(self.module):
            # ZeRO updates a float32 copy, from which it makes the model's weights after steps.
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
                p.data.copy_(saved(f"{WEIGHT}.{name}"))
            for kind in TENSOR_KINDS:
                self._set(p, kind, saved(f"{kind}.{name}"))
        return step

    def _updated_tensors(self) -> list[torch.Tensor]:
        """The tensors that AdamW updates on this worker: parameters or, from ZeRO 1 on, its slices
        of them.
        """
        if self.zero_stage == 0:
            return [p for _, p in trained_parameters(self.module)]
        if self.zero_stage == 3:
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return list(self.engine.optimizer.single_partition_of_fp32_groups)

    def _whole(self, p: Any, kind: str) -> torch.Tensor:
        """The whole weight or moment; called on every worker."""
        if self.zero_stage == 0:
            return weight_or_moment(self.optimizer, p, kind)
        moment = None if kind == WEIGHT else kind
        whole: torch.Tensor = (
            self.engine.optimizer.get_full_hp_param(p, moment)
            if self.zero_stage == 3
            else p.get_full_hp_param(moment)
        )
        return whole

    def _set(self, p: Any, kind: str, whole: torch.Tensor) -> None:
        """Writes a whole weight or moment into this worker's slice of it."""
        moment = None if kind == WEIGHT else kind
        if self.zero_stage == 0:
            weight_or_moment(self.optimizer, p, kind).copy_(whole)
        elif self.zero_stage == 3:
            # DeepSpeed's slicing fails for a tensor that the workers cannot divide evenly.
            size = p.ds_tensor.numel()
            local = whole.flatten()[current_shard().rank * size :][:size]
            padded = torch.nn.functional.pad(local, (0, size - len(local)))
            self.engine.optimizer.set_local_hp_param(padded, p, moment)
        else:
            p.set_full_hp_param(whole, moment)

    def trained_weights(self) -> dict[str, torch.Tensor]:
        import deepspeed

        whole = {}
        for name, p in trained_parameters(self.module):
            # Under ZeRO-3 a worker holds a slice; reading it plainly gives an empty tensor.
            with deepspeed.zero.GatheredParameters([p]):
                whole[name] = p.detach().cpu().clone()
        return whole
