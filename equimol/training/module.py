"""The Lightning module: one training step, the average of the weights, the optimizer and its schedule."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from equimol.data.properties import PROPERTIES
from equimol.models.compiled import Compiled
from equimol.training.batches import typical_frames
from equimol.training.config import TrainConfig
from equimol.training.loss import loss_terms
from equimol.training.metrics import ErrorSums
from equimol.training.processes import ALONE, Processes


class TrainingModule(pl.LightningModule):
    """A potential in training and the running average of its weights.

    Both are in the state dict, hence in every checkpoint. What is validated, and saved in the end, is `averaged`.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: dict[str, float],
        config: TrainConfig,
        total_steps: int,
        group: Processes = ALONE,
        later_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self.weights, self.later_weights = weights, later_weights or weights
        self.names = [name for name in weights if weights[name] > 0 or self.later_weights[name] > 0]  # what has a loss
        self.later_from = round(config.stage_two["start"] * total_steps) if config.stage_two else total_steps
        self.settings, self.total_steps, self.steps_done = config, total_steps, 0
        self.compiled: Compiled | None = None
        self.terms: dict[str, Tensor] = {}  # of the latest step, unweighted and detached
        self.valid_errors = ErrorSums()

    def train(self, mode: bool = True) -> "TrainingModule":
        """As of any module, but the average is never in training mode."""
        super().train(mode)
        self.averaged.eval()
        return self

    def compile_model(self, graphs: Sequence[Any]) -> None:
        """Trains through a compiled program from now on. Graphs of frames serve as examples."""
        device, batch = next(self.model.parameters()).device, typical_frames(self.settings.batch, graphs)
        # the second smaller, so that the program is checked with other sizes
        parts = graphs[:batch], graphs[batch : 2 * batch - 1] or graphs[:1]
        self.compiled = Compiled(self.model, [Batch.from_data_list(list(part)).to(device) for part in parts])

    def leaves_parameters_out(self, graph: Any) -> bool:
        """Whether some trained parameter has no part in a loss, at first or later on: processes must know before they begin."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        steps = {0, self.later_from if self.settings.stage_two else 0}
        left_out = False
        for self.steps_done in steps:
            gradients = torch.autograd.grad(self.training_step(graph), trained, allow_unused=True)
            left_out |= any(gradient is None for gradient in gradients)
        self.steps_done = 0
        return left_out

    def weights_at(self, step: int) -> dict[str, float]:
        """Of the loss after so many steps."""
        return self.weights if step < self.later_from else self.later_weights

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.steps_done = self.trainer.global_step

    def training_step(self, graph: Any, batch_idx: int = 0) -> Tensor:
        terms = loss_terms((self.compiled or self.model)(graph), graph, self.names, self.settings.loss_function, self.group)
        weights = self.weights_at(self.steps_done)
        loss = sum(weights[name] * term for name, term in terms.items() if weights[name] > 0)
        self.terms = {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.settings.accumulate == 0:
            self.update_average(self.trainer.global_step)

    def check_finite(self) -> None:
        """Raises where the latest loss is NaN or infinite. Asked before anything is saved, so that no file holds broken weights."""
        loss = float(self.terms["loss"])
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss became {loss} at or before step {self.trainer.global_step}; last.ckpt and best.ckpt are from before."
                " Start again with a smaller learning_rate, and look for extreme labels in the data"
            )

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Average after `step` steps, over the last tenth of them at first, over 1/(1 - decay) steps later on.

        The first step replaces the initial weights, so they never enter; a plain mean from there would lag behind a short run.
        """
        share = max(1.0 - self.settings.ema, 10.0 / (9.0 + step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), share)

    def on_validation_start(self) -> None:
        self.valid_errors = ErrorSums(name for name in PROPERTIES if name in self.averaged.outputs)

    def validation_step(self, graph: Any, batch_idx: int = 0) -> None:
        with torch.enable_grad():  # forces are a derivative
            self.valid_errors.update(self.averaged(graph), graph)

    def on_validation_epoch_end(self) -> None:
        self.valid_errors = self.valid_errors.of_all(self.group)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = make_optimizer(self.model, self.settings)
        total, warmup, shape = self.total_steps, self.settings.warmup, SCHEDULES[self.settings.schedule]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, warmup, shape))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip, foreach=True))
        if not math.isfinite(norm):  # raised before the optimizer moves: weights and checkpoints stay whole
            self.check_finite()
            raise ValueError(
                f"the gradient became {norm} although the loss is finite; last.ckpt and best.ckpt are from before."
                " Start again with precision=float64 or a smaller learning_rate, and look for extreme labels in the data"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["random_state"])


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with AMSGrad. Matrices decay, vectors and scalars (biases, factors per degree) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, amsgrad=True, fused=True)


def rate_factor(step: int, total: int, warmup: int, shape: Callable[[float], float]) -> float:
    """Share of the full learning rate at a step: a line up over the warm-up, then down by a shape of the share of the run that is done."""
    warmup = min(warmup, total // 10)
    if step < warmup:
        return (step + 1) / warmup
    return shape((step - warmup) / max(1, total - warmup))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "exponential": lambda done: 0.01**done,  # ends at a hundredth
    "wsd": lambda done: min(1.0, 5 * (1 - done)),  # warm up, stay, decay: a line to zero over the last fifth
}
