"""DistributedDataParallel: the optimizer is wrapped as in one process; replicas stay equal.

    torchrun --nproc-per-node 2 examples/integrations/with_ddp.py

Prints the sparsity and that both replicas have the same topology; seconds on a CPU.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = f"cuda:{dist.get_rank()}" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(dist.get_rank())  # every rank has data of its own
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    model = DistributedDataParallel(network)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # The only new line. No seed to share, no masks to send: topologies follow from the weights and
    # the gradients that DDP has averaged, and from a private seed.
    opt = SparseOptimizer(
        opt, algo="rigl", sparsity=0.9, total_steps=30, update_every=5, model=model
    )

    for _ in range(30):
        inputs = torch.randn(32, 16, device=device)
        opt.zero_grad()
        mse_loss(model(inputs), inputs[:, :4].sin()).backward()
        opt.step()

    mask = opt.masks["0.weight"].float()
    total = mask.clone()
    dist.all_reduce(total)
    assert torch.equal(total, mask * dist.get_world_size()), "replicas differ"
    if dist.get_rank() == 0:
        print(f"sparsity {opt.sparsity:.1%}, {opt.updates} updates, replicas equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
