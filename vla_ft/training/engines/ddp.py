"""One full copy per process, gradients averaged (Li et al., 2020)."""

# No deferred annotations here: torch reads those of a communication hook and expects the types themselves.
import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from vla_ft.policies.base import Model
from vla_ft.training.engines.process_group import ProcessGroupEngine


class DdpEngine(ProcessGroupEngine):
    """torch's DistributedDataParallel. Shares are whole copies; the main process writes its own."""

    name = "ddp"
    module: DistributedDataParallel

    def wrap(self, model: Model) -> None:
        self.model = model.to(self.device)
        self._hold_whole(model)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() == 4 and parameter.shape[2:] == (1, 1):
                parameter.register_hook(_plainly_strided)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are constants (frozen batch norm, position tables): nothing to broadcast at every forward.
        self.module = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        if self.config.precision in ("bf16_stochastic", "bf16_kahan"):
            self.module.register_comm_hook(self.world_size, _mean_in_float32)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        with contextlib.nullcontext() if last else self.module.no_sync():
            yield

    def check(self) -> None:
        super().check()
        if type(self.module) is not DistributedDataParallel:
            raise RuntimeError(f"engine ddp holds a {type(self.module).__name__}")

    def close(self) -> None:
        # The reducer must not be the last to hold the process group: it would end gloo's threads while it holds the
        # interpreter's lock, which they may be waiting for to drop their last tensor. Neither goes on then.
        if wrapped := getattr(self, "module", None):
            del wrapped.reducer, wrapped.logger
        super().close()


def _plainly_strided(gradient: Tensor) -> Tensor:
    """The gradient of a 1x1 convolution under the strides of its weight: a view, where memory is alike.

    Images come with channels last, and so does this gradient. That is the same memory, but DDP compares strides by
    their numbers, and warns on every process.
    """
    return gradient.reshape(-1).view(gradient.shape)


def _mean_in_float32(processes: int, bucket: GradBucket) -> Future[Tensor]:
    """Average a bucket of bfloat16 gradients in float32: sums of many processes would be rounded at every addition."""
    gradients = bucket.buffer()
    summed = dist.all_reduce(gradients.float().div_(processes), async_op=True).get_future()
    return summed.then(lambda done: gradients.copy_(done.value()[0]))
