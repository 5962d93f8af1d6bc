"""One run in several processes: which of them this is, what the first one decides for all, and sums over all of them."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

PATIENCE = datetime.timedelta(hours=2)  # the first process may time steps and write while the others wait

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of the run. One alone talks to nobody."""

    rank: int = 0
    count: int = 1
    per_node: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def of_first(self, function: Callable[[], Result]) -> Result:
        """What the function gives in the first process, in all of them; the error, where it raises one."""
        if self.count == 1:
            return function()
        shared: list[Any] = [None, None]
        if self.first:
            try:
                shared[0] = function()
            except Exception as error:
                shared[1] = error
        torch.distributed.broadcast_object_list(shared)
        if shared[1] is not None:
            raise shared[1]
        return shared[0]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; the values themselves where there is one."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        torch.distributed.all_reduce(total)
        return total


ALONE = Processes()


@contextlib.contextmanager
def all_processes() -> Iterator[Processes]:
    """The processes that torchrun or SLURM started for this run, connected as long as the block lasts. All but the first are silent."""
    environment = _environment()
    if environment is None or environment.world_size() == 1:
        yield ALONE
        return
    count = environment.world_size()
    own = not torch.distributed.is_initialized()
    if own:
        torch.distributed.init_process_group(
            backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"tcp://{environment.main_address}:{environment.main_port}",
            rank=environment.global_rank(),
            world_size=count,
            timeout=PATIENCE,
        )
    group = Processes(environment.global_rank(), count, _per_node(count))
    try:
        with contextlib.ExitStack() as stack:
            if not group.first:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield group
    finally:
        if own:
            torch.distributed.destroy_process_group()


def _environment() -> Any:
    """Lightning's reading of the variables that the launcher set; None where nothing was launched."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return next((kind() for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)


def _per_node(count: int) -> int:
    known = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
    return int(known) if known else count // int(os.environ.get("SLURM_NNODES", 1))
