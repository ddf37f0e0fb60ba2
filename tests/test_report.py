"""sparseopt.report writes one page that says what the optimizer knows and needs nothing else."""

from __future__ import annotations

import copy
import re
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from common import DYNAMIC, MORE_RECIPES, RECIPES, Recipe, convnet, mlp, sparse, train
from old_torch import needs_fsdp2
from torch import nn
from two_processes import in_processes

import sparseopt
from sparseopt import SparseOptimizer, report
from sparseopt.run_report.pictures import as_image

EMPTY_ELEMENTS = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """What a page holds: its text, tables and references, and whether its elements are closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: list[list[str]] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def row(self, name: str) -> list[str]:
        (found,) = [row for row in self.rows if row[0] == name]
        return found

    def tile(self, name: str) -> str:
        return self.texts[self.texts.index(name) + 1]


def written(optimizer: SparseOptimizer, folder: Path, **options: Any) -> Page:
    return Page(report(optimizer, folder / "run.html", **options))


def assert_self_contained(page: Page) -> None:
    assert page.open == []
    assert not re.search(r"https?:|[\"']//|@import|url\(", page.source)
    assert "script" not in {tag for tag, _, _ in page.attributes}
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value is not None and value.startswith("data:"), tag
    assert "default-src 'none'" in page.source


def assert_says_what_the_optimizer_says(page: Page, optimizer: SparseOptimizer) -> None:
    active = sum(layer.nnz for layer in optimizer.layers)
    assert page.tile("sparsity now") == f"{100 * optimizer.sparsity:.4g} %"
    assert page.tile("active weights") == f"{active:,}"
    assert page.tile("topology updates") == f"{optimizer.updates:,}"
    for layer in optimizer.layers:
        row = page.row(layer.name)
        assert row[3:6] == [f"{layer.numel:,}", f"{layer.nnz:,}", f"{100 * layer.density:.4g} %"]
    assert page.row("total")[4] == f"{active:,}"
    for record in optimizer.history:
        assert page.row(f"{record.step:,}")[1:3] == [f"{record.dropped:,}", f"{record.grown:,}"]
    if optimizer.history:
        rate = 100 * optimizer.history[-1].exploration_rate
        assert page.tile("exploration rate") == f"{rate:.4g} %"


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
@pytest.mark.parametrize("steps", [0, 14])
def test_the_page_of_every_recipe_has_the_numbers_of_the_optimizer(
    recipe: Recipe, steps: int, tmp_path: Path
) -> None:
    model = mlp(sizes=(8, 12, 5))
    optimizer = sparse(model, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), recipe)
    train(model, optimizer, steps)
    page = written(optimizer, tmp_path)
    assert_self_contained(page)
    assert_says_what_the_optimizer_says(page, optimizer)
    assert page.row("recipe")[1] == recipe.algo
    assert page.row("seed")[1] == "0"
    assert sparseopt.__version__ in page.row("versions")[1]


@pytest.mark.parametrize("options", [
    {"storage": "masked"}, {"storage": "compact"}, {"compute": "sparse"}, {"compute": "auto"},
], ids=str)  # fmt: skip
def test_every_storage_and_compute_is_reported_and_goes_on_as_if_not(
    options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("fvcore")
    runs = []
    for reported in (True, False):
        model = mlp(sizes=(16, 32, 5), dtype=torch.float32)
        optimizer = sparse(model, torch.optim.AdamW, "rigl", **options)
        train(model, optimizer, 7)
        if reported:
            page = written(optimizer, tmp_path, inputs=torch.zeros(4, 16))
            assert_self_contained(page)
            assert_says_what_the_optimizer_says(page, optimizer)
            assert page.row("storage")[1] == optimizer._storage.name
        train(model, optimizer, 8, first=7)
        runs.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(one, runs[1][name]) for name, one in runs[0].items())


@pytest.mark.parametrize("compute", ["dense", "sparse"])
def test_the_weights_shown_are_those_of_now(compute: str, tmp_path: Path) -> None:
    model = mlp(sizes=(16, 32, 5), dtype=torch.float32)
    optimizer = sparse(model, torch.optim.SGD, "set", compute=compute, sparsity=0.9)
    train(model, optimizer, 2)
    page = written(optimizer, tmp_path)
    for layer in optimizer.layers:
        sums = model.state_dict()[layer.name].abs().sum(1)
        extent = f"from {sums.min():.4g} to {sums.max():.4g}"
        assert f"{layer.name}: sum of |w| per filter, {extent}" in page.source


def test_groups_with_a_sparsity_of_their_own_are_all_there(tmp_path: Path) -> None:
    model = mlp(sizes=(8, 12, 8, 5))
    groups = [
        {"params": model[0].parameters(), "lr": 0.3},
        {"params": model[2].parameters(), "sparsity": 0.5},
        {"params": model[4].parameters(), "sparsity": 0.0},
    ]
    optimizer = sparse(model, torch.optim.SGD(groups, lr=0.1), "set")
    train(model, optimizer, 7)
    page = written(optimizer, tmp_path)
    assert_says_what_the_optimizer_says(page, optimizer)
    assert "another target" in page.text
    assert "lr=0.3" in page.row("group 0")[1] and "sparsity=0.5" in page.row("group 1")[1]


def test_a_resumed_run_has_the_page_of_the_first(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sparse(model, torch.optim.Adam, "granet_r", drop_fraction=0.5)
    train(model, optimizer, 14)
    other = copy.deepcopy(model)
    resumed = sparse(other, torch.optim.Adam, "granet_r", drop_fraction=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    one, two = (written(each, tmp_path).source for each in (optimizer, resumed))
    assert re.sub(r"Written [^<]*", "", one) == re.sub(r"Written [^<]*", "", two)


def test_a_checkpoint_under_other_names_is_said(tmp_path: Path) -> None:
    model = mlp()
    unnamed = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), "set", update_every=2)
    train(model, unnamed, 5)
    named = sparse(copy.deepcopy(model), torch.optim.SGD, "set", sparsity=0.5)
    named.load_state_dict(copy.deepcopy(unnamed.state_dict()))
    page = written(named, tmp_path)
    assert "layers that this optimizer does not have: 0.0, 0.2" in page.text
    assert page.row("0.weight")[6] == "not recorded"


def test_before_the_first_update_the_next_one_is_named(tmp_path: Path) -> None:
    page = written(sparse(mlp(), torch.optim.SGD, "set", update_every=7), tmp_path)
    assert "No topology update so far; the next is due at step 7." in page.text
    static = written(sparse(mlp(), torch.optim.SGD, "static"), tmp_path)
    assert "none is due" in static.text


def test_flops_are_those_of_the_optimizer_or_said_to_be_missing(tmp_path: Path) -> None:
    pytest.importorskip("fvcore")
    model = mlp(dtype=torch.float32)
    optimizer = sparse(model, torch.optim.SGD, "rigl")
    train(model, optimizer, 14)
    assert "FLOPs were not counted" in written(optimizer, tmp_path).text
    inputs = torch.zeros(4, 6)
    live, page = optimizer.flops(inputs), written(optimizer, tmp_path, inputs=inputs)
    assert page.row("one sample, now")[1] == f"{live.inference:,.0f}"
    so_far = page.row("training, 14 steps so far")
    assert so_far[1:4] == [
        f"{live.so_far.training:.4g}", f"{live.so_far.dense:.4g}",
        f"{100 * live.so_far.share:.4g} %",
    ]  # fmt: skip
    assert so_far[4] == f"{live.so_far.growth:.4g}" != "0"
    assert page.row("training, all 40 steps (projected)")


def test_flops_of_a_model_without_a_counted_operator_are_unknown(tmp_path: Path) -> None:
    pytest.importorskip("fvcore")
    model = nn.GRU(4, 6)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), "set", model=model, include="weight_*"
    )
    inputs = torch.ones(3, 2, 4)
    model(inputs)[0].sum().backward()
    optimizer.step()
    assert "nan % of dense" in str(optimizer.flops(inputs))
    page = written(optimizer, tmp_path, inputs=inputs)
    assert page.row("one sample, now")[1:4] == ["0", "0", "unknown"]
    assert "None of the model's operators has a count" in page.text and "gru (1)" in page.text


def reported(rank: int, folder: str) -> str:
    """The page of a run in shards; of the same run in one process for a negative rank."""
    model = mlp((6, 7, 5))
    if rank >= 0:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    optimizer = sparse(model, torch.optim.SGD, "rigl", sparsity=0.5)
    train(model, optimizer, 4)
    source = report(optimizer, Path(folder) / f"page{rank}.html").read_text()
    return re.sub(r"Written [^<]*|torch.initial_seed.*?</tr>", "", source)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
@needs_fsdp2
def test_every_process_writes_the_page_of_the_whole_layers(tmp_path: Path) -> None:
    pages = in_processes(reported, tmp_path, str(tmp_path))
    assert pages[0] == pages[1] == reported(-1, str(tmp_path))


def test_names_of_layers_are_escaped(tmp_path: Path) -> None:
    model = nn.ModuleDict({"<b>&\"'": nn.Linear(4, 4)})
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    page = written(optimizer, tmp_path, title="</title><script>")
    assert "<b>&\"'.weight" in page.text and "<script" not in page.source
    assert page.row("<b>&\"'.weight")[4] == "8"


def test_weights_that_are_not_finite_and_skipped_updates_are_said(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sparse(model, torch.optim.SGD, "set")
    with torch.no_grad():
        model[0].weight[optimizer.masks["0.weight"]] = float("nan")
    train(model, optimizer, 4)
    page = written(optimizer, tmp_path)
    assert "not finite in: 0.weight" in page.text and "1 skipped" in page.text
    assert page.row("3")[1:4] == ["skipped"] * 3
    assert "nan" not in "".join(value or "" for _, name, value in page.attributes if name == "d")


def test_at_most_so_many_layers_are_pictured_and_the_page_says_so(tmp_path: Path) -> None:
    optimizer = sparse(mlp(sizes=(6,) * 8), torch.optim.SGD, "set")
    page = written(optimizer, tmp_path, pictures=3)
    names = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    pictured = [name.split(":")[0] for name in names if name and "active weights" in name]
    assert pictured == ["0.weight", "6.weight", "12.weight"]
    assert "3 of 7 layers, evenly chosen" in page.text
    assert "1 of 7 layers, evenly chosen" in written(optimizer, tmp_path, pictures=1).text
    assert "No pictures were asked for" in written(optimizer, tmp_path, pictures=0).text


def test_every_picture_has_a_text(tmp_path: Path) -> None:
    model = convnet()
    optimizer = sparse(model, torch.optim.SGD, "granet_r", drop_fraction=0.5)
    train(model, optimizer, 7)
    page = written(optimizer, tmp_path)
    elements = re.findall(r"<(img|svg) ([^>]*)>", page.source)
    assert len(elements) > 10
    for kind, attributes in elements:
        assert re.search(r'alt="[^"]' if kind == "img" else r'aria-label="[^"]', attributes)


def test_a_picture_holds_the_mask_row_by_row() -> None:
    data = b64decode(as_image(torch.tensor([[0.0, 1.0], [0.25, 0.0]])).partition("base64,")[2])
    assert data.startswith(b"\x89PNG")
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    assert [*zlib.decompress(data[start : start + length])] == [0, 0, 255, 0, 128, 0]


@pytest.mark.parametrize("recipe", DYNAMIC[:1], ids=str)
def test_a_page_can_be_kept_up_to_date_from_on_update(recipe: Recipe, tmp_path: Path) -> None:
    model, path = mlp(), tmp_path / "run.html"
    optimizer = sparse(model, torch.optim.SGD, recipe, on_update=lambda _: report(optimizer, path))
    train(model, optimizer, 7)
    assert_says_what_the_optimizer_says(Page(path), optimizer)
    assert [file.name for file in tmp_path.iterdir()] == ["run.html"]


def test_paths_may_be_strings_and_come_back_as_paths(tmp_path: Path) -> None:
    optimizer = sparse(mlp(), torch.optim.SGD, "set")
    assert report(optimizer, str(tmp_path / "run.html")) == tmp_path / "run.html"


def test_a_failed_write_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = sparse(mlp(), torch.optim.SGD, "set")
    path = report(optimizer, tmp_path / "run.html", title="the old page")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        report(optimizer, path, title="the new page")
    assert "the old page" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["run.html"]


def test_what_cannot_be_reported_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sparse(model, torch.optim.SGD, "set")
    page = tmp_path / "run.html"
    for other in (torch.optim.SGD(model.parameters(), lr=0.1), model, None):
        with pytest.raises(TypeError, match="opt= is of type .*must be a SparseOptimizer"):
            report(other, page)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path=3 must be a path"):
        report(optimizer, 3)  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError, match="is a folder"):
        report(optimizer, tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent"):
        report(optimizer, tmp_path / "absent" / "run.html", inputs="not even looked at")
    for pictures in (-1, 2.5, True):
        with pytest.raises(ValueError, match="pictures="):
            report(optimizer, page, pictures=pictures)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass inputs="):
        report(optimizer, page, model=model)
    assert not page.exists()
