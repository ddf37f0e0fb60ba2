"""Updates of sharded layers: what one process would choose, at little traffic and memory."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from common import mlp
from old_torch import needs_fsdp2
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from two_processes import caught, in_processes

from sparseopt import SparseOptimizer
from sparseopt.select import choose, choose_across, top_k, top_k_across

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    needs_fsdp2,
]


# --- selections -----------------------------------------------------------------------------------

KINDS = ("normal", "ties", "zeros of both signs", "mostly excluded", "half", "whole numbers")


def values(kind: str, shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    draw = torch.randn(shape, generator=source)
    if kind == "ties":
        return draw.round()
    if kind == "zeros of both signs":
        return torch.where(draw > 0.5, draw, torch.zeros(()).copysign(draw))
    if kind == "mostly excluded":
        return draw.masked_fill(draw < 1.0, -math.inf)
    if kind == "whole numbers":
        return (3 * draw).long()
    return draw.bfloat16() if kind == "half" else draw.double()


def shapes(source: torch.Generator, number: int) -> list[tuple[int, ...]]:
    """Matrices and convolutions; with 1 to 9 rows, some leave a process without any."""
    draw = torch.randint(1, 10, (number, 3), generator=source).tolist()
    return [tuple(size) if size[2] % 2 else tuple(size[:2]) for size in draw]


def compare_selections(rank: int) -> list[str]:
    """Choices that differ from those on whole tensors; there should be none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    source = torch.Generator().manual_seed(0)
    wrong = []
    for turn in range(24):
        kind = KINDS[turn % len(KINDS)]
        scores = [values(kind, shape, source) for shape in shapes(source, 1 + turn % 3)]
        masks = [score.double() > 0.2 for score in scores]
        cut = [distribute_tensor(score, mesh, [Shard(0)]) for score in scores]
        cut_masks = [distribute_tensor(mask, mesh, [Shard(0)]) for mask in masks]
        allowed = sum(int((score.double() > -math.inf).sum()) for score in scores)
        k = int(torch.randint(allowed + 1, (), generator=source))
        wanted, found = top_k_across(scores, k), top_k_across(cut, k)
        wrong += [f"top_k {turn} {kind}"] * (not same(wanted, found))
        whole, part = everything(masks, cut_masks) if turn % 5 == 0 else (masks, cut_masks)
        k = math.floor((0.1, 0.4, 0.6, 1.0)[turn % 4] * sum(int(mask.sum()) for mask in whole))
        wanted = choose_across(whole, k, torch.Generator().manual_seed(turn))
        found = choose_across(part, k, torch.Generator().manual_seed(turn))
        wrong += [f"choose {turn}"] * (not same(wanted, found))
    return wrong


def everything(*lists: Any) -> tuple[Any, ...]:
    return tuple([torch.ones_like(mask) for mask in masks] for masks in lists)


def same(wanted: list[torch.Tensor], found: list[Any]) -> bool:
    pairs = zip(wanted, found, strict=True)
    return all(torch.equal(one, other.full_tensor()) for one, other in pairs)


def refusals(rank: int) -> list[str]:
    """The errors of both processes where only one of them holds the reason."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    values = torch.arange(12.0).view(4, 3)
    wrong = distribute_tensor(values.masked_fill(values == 11, math.nan), mesh, [Shard(0)])
    few = distribute_tensor(values.masked_fill(values < 10, -math.inf), mesh, [Shard(0)])
    mask = distribute_tensor(values > 10, mesh, [Shard(0)])
    calls = (
        lambda: top_k(wrong, 1),
        lambda: top_k(few, 3),
        lambda: top_k(few, 13),
        lambda: choose(mask, 2, torch.Generator()),
    )
    return [caught(call).strip().splitlines()[-1] for call in calls]


# --- traffic and memory ---------------------------------------------------------------------------


PLAIN = (torch.Tensor, torch.nn.Parameter)  # those of DTensor's own bookkeeping hold no memory


class Meter(TorchDispatchMode):
    """Bytes received in collectives, and the most bytes of new tensors alive at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.received = self.alive = self.peak = 0
        self.known: Any = WeakTensorKeyDictionary()
        self.owners: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local operations come here after it
        inputs = [one for one in tree_leaves(args) if type(one) in PLAIN]
        outputs = func(*args, **(kwargs or {}))
        found = [one for one in tree_leaves(outputs) if type(one) in PLAIN]
        if "c10d" in func.namespace and "wait" not in str(func) and "wrap" not in str(func):
            self.received += sum(one.nbytes for one in found)
        held = {one.untyped_storage().data_ptr() for one in inputs} - set(self.owners)
        for one in found:
            self.note(one, held)
        return outputs

    def note(self, tensor: torch.Tensor, held: set[int]) -> None:
        """Count the memory of a tensor for as long as anything uses it."""
        memory, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if tensor in self.known or memory in held or not size:
            return
        self.known[tensor] = True
        self.alive += size * (not self.owners[memory])
        self.owners[memory] += 1
        self.peak = max(self.peak, self.alive)
        weakref.finalize(tensor, self.forget, memory, size)

    def forget(self, memory: int, size: int) -> None:
        self.owners[memory] -= 1
        if not self.owners[memory]:
            del self.owners[memory]
            self.alive -= size


RECIPES: dict[str, dict[str, Any]] = {
    "set": {"algo": "set"},
    "rigl": {"algo": "rigl"},
    "over all layers": {"algo": "rigl", "scope": "global"},
    "mest_g": {"algo": "mest_g"},
    "granet_r": {"algo": "granet_r"},
    "gmp": {"algo": "gmp"},
    "acdc": {
        "algo": "acdc",
        "warmup": 5,
        "sparse": 2,
        "dense": 1,
        "final_dense_start": 7,
        "final_sparse_start": 8,
    },
    "srigl": {"algo": "srigl"},
    "nm": {"algo": "nm", "sparsity": 0.75},
    "magnitude at the start": {"algo": "rigl", "topology": "magnitude"},
    "snfs": {"algo": "snfs"},
    "cht": {"algo": "cht", "grow": "ch3_l3n"},
    "chts": {"algo": "chts"},
}
NARROW, WIDE = (96, 64, 48), (384, 256, 192)  # 16 times the weights


def metered(widths: Sequence[int], options: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Bytes of wrapping, of two steps, and of two with an update, in this process."""
    from torch.distributed.fsdp import fully_shard

    model = mlp(widths, dtype=torch.float32, bias=False)
    for part in (*model, model):
        fully_shard(part) if len(list(part.parameters())) else None
    given = {"sparsity": 0.9, "total_steps": 10, "update_every": 5, "model": model} | options
    with Meter() as start:
        optimizer = SparseOptimizer(SGD(model.parameters(), lr=0.1), given.pop("algo"), **given)
    results = {"start": start}
    for step in range(6):
        optimizer.zero_grad()
        source = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, widths[0], generator=source)
        model(inputs).square().sum().backward()
        with Meter() as meter:
            optimizer.step()
        results["update" if step == 4 else "step"] = meter
    assert len(optimizer.history) == 1 and optimizer.history[0].dropped > 0
    return {name: {"received": one.received, "peak": one.peak} for name, one in results.items()}


def meter_all(rank: int) -> dict[str, Any]:
    return {
        name: [metered(widths, options) for widths in (NARROW, WIDE)]
        for name, options in RECIPES.items()
    }


def all_work(rank: int) -> dict[str, Any]:
    work = (compare_selections, refusals, meter_all)
    return {one.__name__: caught(lambda one=one: one(rank)) for one in work}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three processes: with two, the first and the last are all there are."""
    return in_processes(all_work, tmp_path_factory.mktemp("shards"), world=3)


@pytest.mark.stack("FSDP2", "exact choices, three processes")
def test_selections_from_shards_are_those_from_the_whole(ranks):
    for of_rank in ranks:
        assert of_rank["compare_selections"] == []


def test_every_process_refuses_what_one_of_them_cannot_rank(ranks):
    for of_rank in ranks:
        nan, few, many, chosen = of_rank["refusals"]
        assert "score holds 1 NaN" in nan
        assert "k=3 must be between 0 and 2" in few and "k=13 must be between 0 and 12" in many
        assert "k=2 must be between 0 and 1" in chosen


def bytes_of(ranks: list[dict[str, Any]], name: str, when: str, what: str) -> tuple[int, int]:
    """Of the narrow network and of the wide one, the most of any process."""
    narrow, wide = zip(*(of_rank["meter_all"][name] for of_rank in ranks), strict=True)
    return tuple(max(one[when][what] for one in of) for of in (narrow, wide))


WEIGHTS = sum(a * b for a, b in zip(WIDE, WIDE[1:], strict=False))
WHOLE = 5 * WEIGHTS  # bytes of the weights in float32 and of the masks
CHOSEN = [name for name in RECIPES if name not in ("snfs", "cht", "chts")]


@pytest.mark.stack("FSDP2", "traffic and memory of an update")
@pytest.mark.parametrize("name", CHOSEN)
def test_what_an_update_sends_does_not_grow_with_the_layers(name, ranks):
    narrow, wide = bytes_of(ranks, name, "update", "received")
    assert 0 < wide <= 1.1 * narrow and wide < WHOLE / 8


@pytest.mark.stack("FSDP2", "traffic and memory of an update")
@pytest.mark.parametrize("name", CHOSEN)
def test_no_process_holds_whole_layers_at_an_update(name, ranks):
    """The peak is that of a third of the rows; whole layers would take three times as much."""
    _, wide = bytes_of(ranks, name, "update", "peak")
    rows = 9 * WEIGHTS / 3  # weights, masks and gradients, in bytes
    assert wide < rows * (3.5 if name in ("over all layers", "srigl", "nm") else 2.5)


@pytest.mark.stack("FSDP2", "traffic and memory of an update")
def test_momentum_is_shared_out_by_the_active_values_alone(ranks):
    _, wide = bytes_of(ranks, "snfs", "update", "received")
    _, others = bytes_of(ranks, "rigl", "update", "received")
    assert wide - others <= 1.2 * 4 * WEIGHTS / 10, "four bytes for each of the active tenth"


@pytest.mark.stack("FSDP2", "traffic and memory of an update")
def test_link_prediction_brings_masks_together_and_no_weights(ranks):
    _, wide = bytes_of(ranks, "cht", "update", "received")
    assert wide < 2.5 * WEIGHTS, "a byte for each place, of the masks and of the candidates"


@pytest.mark.stack("FSDP2", "traffic and memory of an update")
@pytest.mark.parametrize("name", RECIPES)
def test_a_topology_to_start_from_is_made_in_shards(name, ranks):
    narrow, wide = bytes_of(ranks, name, "start", "received")
    assert wide <= narrow + 64
    if name != "magnitude at the start":
        assert wide < 1000


@pytest.mark.stack("FSDP2", "nothing sent in ordinary steps")
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_without_an_update_sends_nothing(name, ranks):
    _, wide = bytes_of(ranks, name, "step", "received")
    layers = len(WIDE) - 1
    assert wide == (3 * 8 * layers if name == "snfs" else 0)
