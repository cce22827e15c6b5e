"""The losses of pose morphing: what is 0 for the truth, what is counted by hand, what learns."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ndgpa
from examples.common.adversarial import non_saturating, non_saturating_generator
from examples.common.measures import ssim_map
from examples.images.pose_morphing.levels import Level
from examples.images.pose_morphing.losses import (
    copy_loss,
    correspondence_loss,
    edge_l1,
    multi_scale_l1,
    structural_loss,
)
from examples.images.pose_morphing.perceptual import (
    VGG,
    Perceptual,
    perceptual_of,
    read_heads,
    share_of_spread,
)

DATA = torch.Generator().manual_seed(2)


def picture(h: int = 16, w: int = 16, b: int = 2) -> torch.Tensor:
    return 2 * torch.rand(b, 3, h, w, generator=DATA) - 1


def full_level(
    query: torch.Tensor, key: torch.Tensor, size: tuple[int, int], affinity: str = "euclidean"
) -> Level:
    copied = torch.zeros(len(query), 3, *size)
    structure = ndgpa.Image(size, block=1)
    return Level(size, copied, query, key, structure, ndgpa.Full(scale=1.0, affinity=affinity))


def test_the_truth_costs_nothing() -> None:
    x = picture(64, 64)
    assert multi_scale_l1(x, x) == 0
    assert edge_l1(x, x) == 0
    assert Perceptual(VGG(stages=2))(x, x) == 0


def test_a_shift_in_brightness_counts_at_every_scale_and_not_along_edges() -> None:
    x = picture()
    assert multi_scale_l1(x + 0.25, x).item() == pytest.approx(0.25 * (1 + 0.5 + 0.5), rel=1e-5)
    assert edge_l1(x + 0.25, x).item() == pytest.approx(0, abs=1e-6)


def test_structure_is_that_of_scikit_image() -> None:
    images, truths = picture(24, 20), picture(24, 20).lerp(picture(24, 20), 0.3)
    halves = [(x.double() + 1) / 2 for x in (images, truths)]
    maps = [ssim_map(image, truth)[5:-5, 5:-5] for image, truth in zip(*halves, strict=True)]
    assert structural_loss(images, truths).item() == pytest.approx(
        1 - sum(x.mean() for x in maps) / 2, abs=1e-5
    )
    assert structural_loss(truths, truths).item() == pytest.approx(0, abs=1e-6)


def test_structure_is_not_compared_in_sixteen_bits() -> None:
    flat = 0.6 + 0.01 * torch.rand(1, 3, 24, 20, generator=DATA)
    other = flat + 0.01 * torch.rand(1, 3, 24, 20, generator=DATA)
    alone = structural_loss(flat, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert structural_loss(flat, other) == alone
        assert structural_loss(flat.bfloat16(), flat.bfloat16()).abs() < 1e-6


def test_detail_that_is_blurred_away_counts_more_at_the_finest_scale() -> None:
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    board = board.expand(1, 3, 16, 16)
    assert multi_scale_l1(torch.zeros_like(board), board) == 1  # pools to nothing
    assert edge_l1(torch.zeros_like(board), board) == 4


def test_copies_are_compared_with_the_target_at_their_size() -> None:
    truth = picture(b=1)
    small = F.avg_pool2d(truth, 4)
    assert copy_loss([small + 0.5], truth).item() == pytest.approx(0.5)
    assert copy_loss([small + 0.5, small - 0.5], truth).item() == pytest.approx(1.0)
    assert copy_loss([], truth) == 0


def test_correspondence_is_the_cross_entropy_of_the_true_key() -> None:
    """By hand: every query looks at its own place, whose key is at distance 0, others at 3."""
    n, size = 64, (8, 8)
    code = 1.5**0.5 * torch.eye(n)[None, None]  # square distances of 3
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 3, 16, 16], align_corners=False)
    known = torch.ones(1, 16, 16, dtype=torch.bool)
    loss = correspondence_loss([full_level(code, code, size)], identity, known)
    want = torch.log(1 + (n - 1) * torch.exp(torch.tensor(-3.0)))
    torch.testing.assert_close(loss, want)


def test_correspondence_is_judged_by_the_affinity_that_attends() -> None:
    """By hand: products are 3 with the true key and 0 with others, squared distances 0 and 6."""
    n, size = 64, (8, 8)
    code = 3**0.5 * torch.eye(n)[None, None]
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 3, 16, 16], align_corners=False)
    known = torch.ones(1, 16, 16, dtype=torch.bool)
    for affinity, gap in (("dot", 3.0), ("euclidean", 6.0)):
        loss = correspondence_loss([full_level(code, code, size, affinity)], identity, known)
        want = torch.log(1 + (n - 1) * torch.exp(torch.tensor(-gap)))
        torch.testing.assert_close(loss, want)


def test_correspondence_moves_queries_to_where_the_truth_is() -> None:
    torch.manual_seed(0)
    size, n = (8, 8), 64
    query = torch.randn(1, 1, n, 8).requires_grad_()
    key = torch.randn(1, 1, n, 8)
    shift = torch.tensor([[[1.0, 0, 0.25], [0, 1, 0]]])  # one site of eight to the right
    origin = F.affine_grid(shift, [1, 3, 16, 16], align_corners=False)
    known = (origin.abs() < 1).all(-1)
    adam = torch.optim.Adam([query], 0.1)
    for _ in range(100):
        adam.zero_grad()
        correspondence_loss([full_level(query, key, size)], origin, known).backward()
        adam.step()
    found = torch.cdist(query[0, 0], key[0, 0]).argmin(1).reshape(size)
    inside = torch.arange(n).reshape(size)[:, 1:]
    assert torch.equal(found[:, :-1], inside)


def selecting_level(kappa: int) -> tuple[Level, torch.Tensor, torch.Tensor]:
    """8x8 sites in blocks of 2x2, cells of one block, two heads; the map; all of it known."""
    draws = torch.Generator().manual_seed(3)
    query, key = (torch.randn(2, 2, 64, 4, generator=draws) for _ in range(2))
    structure = ndgpa.Image((8, 8), block=2)
    operator = ndgpa.GPA(kappa, scale=1.0, affinity="euclidean")
    level = Level((8, 8), torch.zeros(2, 3, 8, 8), query, key, structure, operator)
    theta = torch.tensor([[1.0, 0.1, 0.2], [-0.1, 0.9, 0.05]]).expand(2, 2, 3)
    origin = F.affine_grid(theta, [2, 3, 16, 16], align_corners=False)
    return level, origin, origin.abs().amax(-1) < 1


def test_reading_all_blocks_costs_what_full_attention_costs() -> None:
    level, origin, known = selecting_level(kappa=16)
    full = full_level(level.query, level.key, (8, 8))
    selected = correspondence_loss([level], origin, known, ndgpa.GPA)
    torch.testing.assert_close(selected, correspondence_loss([full], origin, known))
    assert correspondence_loss([level], origin, known) == 0


def test_correspondence_of_a_selection_by_a_loop() -> None:
    """Over what the cell reads, and the four true keys where it does not read them."""
    level, origin, known = selecting_level(kappa=3)
    form = {"scale": 1.0, "affinity": "euclidean"}
    chosen = ndgpa.select(level.query, level.key, level.structure, 3, **form).blocks
    places = F.avg_pool2d((origin * known[..., None]).movedim(3, 1), 2)
    shares = F.avg_pool2d(known[:, None].float(), 2)
    costs, weights = [], []
    for b in range(2):
        for site in range(64):
            row, column = divmod(site, 8)
            share = shares[b, 0, row, column].item()
            if share <= 0.5:
                continue
            x, y = ((places[b, :, row, column] / share + 1) * 4 - 0.5).clamp(0, 7).tolist()
            true = {
                int(v) * 8 + int(u): (1 - abs(x - u)) * (1 - abs(y - v))
                for u in (math.floor(x), math.floor(x) + 1)
                for v in (math.floor(y), math.floor(y) + 1)
                if abs(x - u) < 1 and abs(y - v) < 1
            }
            cost = 0.0
            for head in range(2):
                blocks = chosen[b, head, level.structure.cell_of_site[site]]
                read = set(level.structure.upsample(blocks).flatten().tolist()) | set(true)
                apart = (level.query[b, head, site] - level.key[b, head]).square().sum(dim=1)
                total = (-apart[sorted(read)]).logsumexp(0)
                cost += sum(w * (total + apart[y]).item() for y, w in true.items()) / 2
            costs.append(share * cost)
            weights.append(share)
    loss = correspondence_loss([level], origin, known, ndgpa.GPA)
    assert loss.item() == pytest.approx(sum(costs) / sum(weights), rel=1e-5)


def test_logits_for_copying_may_be_sharper() -> None:
    """Copied features 9 times as hot, of which the loss is to see nothing; all blocks are read."""
    level, origin, known = selecting_level(kappa=16)
    sharper = torch.tensor([9.0, 1.0])
    root = sharper.sqrt()[:, None, None, None]
    hot = dataclasses.replace(level, query=root * level.query, key=root * level.key)
    torch.testing.assert_close(
        correspondence_loss([hot], origin, known, ndgpa.GPA, sharper),
        correspondence_loss([level], origin, known, ndgpa.GPA),
    )


def test_a_true_block_that_is_not_read_is_drawn_into_the_selection() -> None:
    """Every query is to look at its own place; at first each cell reads one block, not its own."""
    level, _, _ = selecting_level(kappa=1)
    origin = F.affine_grid(torch.eye(2, 3).expand(2, 2, 3), [2, 3, 16, 16], align_corners=False)
    known = torch.ones(2, 16, 16, dtype=torch.bool)
    query = level.query.clone().requires_grad_()

    def own() -> float:
        blocks = ndgpa.select(query, level.key, level.structure, 1, scale=1.0, affinity="euclidean")
        return (blocks.blocks[..., 0] == torch.arange(16)).float().mean().item()

    assert own() < 0.2
    adam = torch.optim.Adam([query], 0.1)
    for _ in range(60):
        adam.zero_grad()
        part = dataclasses.replace(level, query=query)
        correspondence_loss([part], origin, known, ndgpa.GPA).backward()
        adam.step()
    assert own() > 0.8


def test_unknown_places_do_not_count() -> None:
    code = torch.randn(1, 1, 64, 4, generator=DATA)
    origin = torch.zeros(1, 16, 16, 2)
    known = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert correspondence_loss([full_level(code, code, (8, 8))], origin, known) == 0


def test_gan_losses_are_those_of_a_logistic_judge() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    wrong = -torch.log(torch.sigmoid(real)).mean() - torch.log(1 - torch.sigmoid(fake)).mean()
    torch.testing.assert_close(non_saturating(real, fake), wrong)
    torch.testing.assert_close(
        non_saturating_generator(fake), -torch.log(torch.sigmoid(fake)).mean()
    )


def test_perceptual_layers_are_those_that_torchvision_saves() -> None:
    names = [name for name, _ in VGG().features.named_parameters()]
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert names == [f"{i}.{kind}" for i in convolutions for kind in ("weight", "bias")]


def test_perceptual_weights_come_from_a_file(tmp_path: Path) -> None:
    saved = VGG().state_dict()
    saved = {name: torch.full_like(x, 0.01) for name, x in saved.items()}
    torch.save({**saved, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    loaded = VGG(tmp_path / "vgg16.pth")
    assert all(bool((p == 0.01).all()) for p in loaded.parameters())
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("other.pth", "missing.pth"):
        with pytest.raises(ValueError, match=r"is not a file|does not hold"):
            VGG(tmp_path / name)


def test_perceptual_random_weights_are_the_same_every_time() -> None:
    torch.manual_seed(5)
    x, y = picture(32, 32), picture(32, 32)
    assert torch.equal(Perceptual(VGG(stages=2))(x, y), Perceptual(VGG(stages=2))(x, y))
    assert Perceptual(VGG(stages=2))(x, y) > Perceptual(VGG(stages=2))(x, x + 0.01 * (y - x)) > 0


def test_lpips_heads_weigh_squared_differences(tmp_path: Path) -> None:
    torch.manual_seed(6)
    x, y = picture(32, 32), picture(32, 32)
    vgg, widths = VGG(), (64, 128, 256, 512, 512)
    heads = [torch.rand(width, generator=DATA) for width in widths]
    saved = {f"lin{i}.model.1.weight": w[None, :, None, None] for i, w in enumerate(heads)}
    torch.save(saved, tmp_path / "lpips.pth")
    got = Perceptual(vgg, read_heads(tmp_path / "lpips.pth"))(x, y)
    wanted = 0.0
    for a, b, w in zip(vgg(x), vgg(y), heads, strict=True):
        a, b = (z / z.norm(dim=1, keepdim=True) for z in (a, b))
        wanted = wanted + ((a - b).square() * w[:, None, None]).sum(dim=1).mean()
    torch.testing.assert_close(got, wanted)


@pytest.mark.bad_input
def test_heads_of_lpips_are_checked(tmp_path: Path) -> None:
    torch.save({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the heads of LPIPS"):
        read_heads(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="belong to VGG-16: give its weights too"):
        perceptual_of(None, tmp_path / "other.pth")


def test_without_vgg_the_loss_compares_features_of_the_recogniser() -> None:
    x, y = picture(64, 32), picture(64, 32)
    distance = perceptual_of(None)
    assert distance(x, x) == 0
    assert distance(x, y) > distance(x, x + 0.01 * (y - x)) > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_the_distance_is_a_share_of_the_spread_of_the_truth() -> None:
    x, y, vgg = picture(32, 32), 0.5 * picture(32, 32), VGG(stages=2)
    wanted = torch.zeros(2)
    for a, b in [(x, y), *zip(vgg(x), vgg(y))]:
        for i in range(2):
            spread = sum((c - c.mean()).abs().sum() for c in b[i]) / b[i].numel()
            wanted[i] += (a[i] - b[i]).abs().mean() / spread / 3
    torch.testing.assert_close(Perceptual(vgg).each(x, y), wanted)
    flat = y.mean(dim=(2, 3), keepdim=True).expand_as(y)
    torch.testing.assert_close(share_of_spread(flat, y), torch.ones(2))


def test_the_distance_alone_paints_a_picture_in_its_colours() -> None:
    """Features of the recogniser have forgotten colours; the picture among the terms has not."""
    torch.manual_seed(0)
    truth = picture(32, 16, b=1)
    image, distance = torch.zeros_like(truth).requires_grad_(), perceptual_of(None)
    optimizer = torch.optim.Adam([image], lr=0.05)
    for _ in range(240):
        optimizer.zero_grad()
        distance(image, truth).backward()
        optimizer.step()
    assert (image - truth).abs().mean() < 0.2 * gap_to_mean(truth)


def gap_to_mean(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(dim=(2, 3), keepdim=True)).abs().mean()
