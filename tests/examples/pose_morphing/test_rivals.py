"""What GPA is compared with in table 1: each rival against what its paper says it computes."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.images.pose_morphing.config import PRESETS
from examples.images.pose_morphing.levels import Given
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.rivals import RIVALS
from examples.images.pose_morphing.rivals.crossing import Crossing
from examples.images.pose_morphing.rivals.flow import Flow, warped
from examples.images.pose_morphing.rivals.modulation import Modulation
from examples.images.pose_morphing.rivals.parts import LIMBS, Parts, moves
from examples.images.pose_morphing.studies import rivals
from examples.people.figures.cache import Options, build
from examples.people.keypoints import NAMES, heat_maps

DATA = torch.Generator().manual_seed(3)
SIZE = (64, 32)
STANDING = {
    **{"nose": (16, 8), "neck": (16, 14), "rsho": (11, 15), "lsho": (21, 15)},
    **{"relb": (8, 22), "lelb": (24, 22), "rwri": (7, 29), "lwri": (25, 29)},
    **{"rhip": (13, 32), "lhip": (19, 32), "rkne": (12, 44), "lkne": (20, 44)},
    **{"rank": (12, 56), "lank": (20, 56)},
}
TINY = dataclasses.replace(PRESETS["tiny64"], size=(32, 16), channels=(4, 6, 8))


def maps_of(joints: dict[str, tuple[int, int]], size: tuple[int, int] = SIZE) -> torch.Tensor:
    points = torch.tensor([[*joints.get(name, (-1, -1)), name in joints] for name in NAMES])
    return heat_maps(points[None].float(), size, sigma=1.0)


def given(width: int, size: tuple[int, int] = (16, 8), **maps: torch.Tensor) -> Given:
    target, source = (torch.randn(1, width, *size, generator=DATA) for _ in range(2))
    pixels = torch.rand(1, 3, *size, generator=DATA)
    maps = {"source_maps": maps_of(STANDING), "target_maps": maps_of(STANDING), **maps}
    return Given(target, source, pixels, **maps, handed=None)


@pytest.mark.parametrize("name", [*RIVALS])
def test_a_rival_trains_in_the_slot_of_the_attention(name: str) -> None:
    attention = f"{name}_4" if name == "XING" else name
    torch.manual_seed(0)
    generator = Generator(dataclasses.replace(TINY, attention=attention))
    source = torch.rand(2, 3, 32, 16, generator=DATA)
    maps = torch.rand(2, 2, 18, 32, 16, generator=DATA)
    morph = generator(source, *maps)
    (morph.image.square().mean() + sum(x.square().mean() for x in morph.copied)).backward()
    learning = {n for n, p in generator.named_parameters() if p.grad is not None}
    assert learning >= {n for n, _ in generator.named_parameters() if n.startswith("source_enc")}
    assert morph.levels == []
    assert len(morph.copied) == (3 if name in ("PARTS", "FLOW") else 0)


def test_an_offset_moves_the_picture() -> None:
    """Two sites to the right and one down, as a loop over sites would."""
    x = torch.randn(1, 2, 6, 8, generator=DATA)
    offsets = torch.tensor([2 * 2 / 8, 2 * 1 / 6])[None, :, None, None].expand(1, 2, 6, 8)
    moved = warped(x, offsets)
    torch.testing.assert_close(moved[:, :, :5, :6], x[:, :, 1:, 2:], atol=1e-5, rtol=1e-5)
    assert torch.equal(warped(x, torch.zeros_like(offsets)).round(decimals=4), x.round(decimals=4))


def test_flow_is_handed_to_the_finer_level() -> None:
    torch.manual_seed(0)
    flow = Flow((16, 8), 4, TINY)
    coarse = torch.full((1, 2, 8, 4), 0.25)
    found = flow(dataclasses.replace(given(4), handed=coarse))
    torch.testing.assert_close(found.handed, torch.full((1, 2, 16, 8), 0.25))
    assert flow(given(4)).handed.count_nonzero() == 0  # it begins at its own place


def test_a_part_moves_as_its_joints() -> None:
    """Whole pixels down and right: every limb's joints are sought where they were."""
    moved = {name: (x + 3, y + 5) for name, (x, y) in STANDING.items()}
    places, inside = moves(maps_of(STANDING), maps_of(moved), torch.Size(SIZE))
    for part, limb in enumerate(LIMBS):
        for name in limb:
            x, y = moved[name]
            assert inside[part, 0, 0, y, x] == 1
            found = (places[part, 0, y, x] + 1) * torch.tensor([32, 64]) / 2 - 0.5
            torch.testing.assert_close(
                found, torch.tensor(STANDING[name]).float(), atol=1e-3, rtol=0
            )


def test_a_limb_that_turns_is_turned() -> None:
    """The forearm points to the side instead of down: its middle still shows its middle."""
    raised = STANDING | {"rwri": (1, 22)}
    places, inside = moves(maps_of(STANDING), maps_of(raised), torch.Size(SIZE))
    part = LIMBS.index(("relb", "rwri"))
    assert inside[part, 0, 0, 22, 4] == 1
    found = (places[part, 0, 22, 4] + 1) * torch.tensor([32, 64]) / 2 - 0.5
    share = (8 - 4) / (8 - 1)
    wanted = torch.tensor([8 + share * (7 - 8), 22 + share * (29 - 22)])
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_a_part_that_is_not_seen_stays_away() -> None:
    hidden = {name: at for name, at in STANDING.items() if name != "rwri"}
    for maps in [(maps_of(hidden), maps_of(STANDING)), (maps_of(STANDING), maps_of(hidden))]:
        _, inside = moves(*maps, torch.Size(SIZE))
        assert inside[LIMBS.index(("relb", "rwri"))].count_nonzero() == 0
        assert inside[LIMBS.index(("rsho", "relb"))].count_nonzero() > 0


def test_a_body_without_any_joint_leaves_the_source_in_its_place() -> None:
    torch.manual_seed(0)
    level, nobody = Parts((16, 8), 4, TINY), maps_of({})
    asked = given(4, source_maps=nobody)
    found = level(asked)
    torch.testing.assert_close(found.copied, asked.pixels)
    source = F.relu(asked.source)  # the largest of the source and of parts that hold zeros
    torch.testing.assert_close(found.target, level.fuse(asked.target, source))


def test_modulation_normalises_each_site_at_first() -> None:
    torch.manual_seed(0)
    asked = given(4)
    found = Modulation((16, 8), 4, TINY)(asked)
    for now, before in ((found.target, asked.target), (found.source, asked.source)):
        spread = before.var(dim=1, keepdim=True, correction=0) + 1e-5
        wanted = (before - before.mean(dim=1, keepdim=True)) / spread.sqrt()
        torch.testing.assert_close(now, wanted)


def test_crossing_reads_by_the_softmax_of_one_matrix() -> None:
    torch.manual_seed(0)
    level = Crossing((8, 4), 6, dataclasses.replace(TINY, attention="XING_4"))
    torch.nn.init.ones_(level.strengths)
    asked = given(6, (8, 4))
    found = level(asked)
    shape, look = (
        conv(x).flatten(2)
        for conv, x in ((level.of_target, asked.target), (level.of_source, asked.source))
    )
    scores = torch.einsum("bcn,bcm->bnm", shape, look) / 6**0.5
    value = level.source_value(asked.source).flatten(2)
    read = torch.einsum("bnm,bcm->bcn", scores.softmax(dim=2), value).unflatten(2, (8, 4))
    torch.testing.assert_close(found.target, asked.target + read)
    value = level.target_value(asked.target).flatten(2)
    shown = torch.einsum("bnm,bcn->bcm", scores.softmax(dim=1), value).unflatten(2, (8, 4))
    torch.testing.assert_close(found.source, asked.source + shown)


@pytest.mark.filterwarnings("ignore:a Frechet distance of 64 features needs more")
@pytest.mark.usefixtures("_one_turn")
def test_the_table_trains_judges_and_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "figures"
    build(data, Options((64, 32), identities=30, poses=2, seed=1), workers=0)
    options = rivals.Options(
        data, data, tmp_path / "runs", tmp_path, ("SKIP",), 1, 1e-3, pictures=4
    )
    rivals.main(options)
    text = (tmp_path / "rivals.md").read_text()
    assert "| UNet (as PATN begins) | 1 | 1 |" in text
    assert (tmp_path / "rivals" / "sheet.jpg").stat().st_size > 0
    before = (tmp_path / "runs" / "SKIP-0").stat().st_mtime_ns
    rivals.main(options)  # nothing is left to do
    assert (tmp_path / "runs" / "SKIP-0").stat().st_mtime_ns == before
    assert (tmp_path / "rivals.md").read_text() == text


@pytest.mark.bad_input
def test_the_table_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown attention 'PATN'"):
        rivals.main(rivals.Options(tmp_path, tmp_path, tmp_path, tmp_path, names=("PATN",)))
    with pytest.raises(ValueError, match="--seconds"):
        rivals.main(rivals.Options(tmp_path, tmp_path, tmp_path, tmp_path, seconds=0.0))
