"""What every structure must satisfy."""

import pickle
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from ndgpa import SpatialStructure
from ndgpa.testing import draw
from ndgpa.testing.draw import seeded
from ndgpa.testing.oracle import rows


class StructureContract:
    """Tests of a `SpatialStructure`: its two tables, and all that follows from them.

    Inherit it and override `structures`. Draw small ones (tens of sites), of sizes that do not
    divide among them.
    """

    def structures(self) -> st.SearchStrategy[SpatialStructure]:
        """Draw structures of the class under test."""
        raise NotImplementedError

    @draw.data
    def test_every_site_is_in_one_block_and_every_block_in_one_cell(self, data: Any) -> None:
        structure = data.draw(self.structures())
        assert sorted(chain(*rows(structure.blocks))) == list(range(structure.num_sites))
        assert sorted(chain(*rows(structure.cells))) == list(range(structure.num_blocks))

    @draw.data
    def test_sizes_agree_with_the_tables(self, data: Any) -> None:
        structure = data.draw(self.structures())
        blocks, cells = rows(structure.blocks), rows(structure.cells)
        assert structure.num_blocks == len(blocks)
        assert structure.num_cells == len(cells)
        assert tuple(structure.blocks.shape) == (structure.num_blocks, structure.sites_per_block)
        assert tuple(structure.cells.shape) == (structure.num_cells, structure.blocks_per_cell)
        assert structure.block_sizes.tolist() == [len(block) for block in blocks]
        for number, block in enumerate(blocks):
            assert structure.block_of_site[block].tolist() == [number] * len(block)
        for number, cell in enumerate(cells):
            sites = [site for block in cell for site in blocks[block]]
            assert structure.cell_of_site[sites].tolist() == [number] * len(sites)
            assert sorted(rows(structure.cell_sites[number, None])[0]) == sorted(sites)
        full = bool((structure.blocks >= 0).all() and (structure.cells >= 0).all())
        assert structure.is_even == full

    @draw.data
    def test_compose_undoes_partition(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)
        assert torch.equal(structure.compose(structure.partition(x)), x)

    @draw.data
    def test_partition_lists_the_sites_of_each_cell(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)
        parts = structure.partition(x)
        for cell, sites in enumerate(structure.cell_sites.tolist()):
            for place, site in enumerate(sites):
                expected = torch.zeros_like(x[:, :, 0]) if site < 0 else x[:, :, site]
                assert torch.equal(parts[:, :, cell, place], expected)

    @draw.data
    def test_what_stands_in_empty_places_is_dropped(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)
        parts = structure.partition(x)
        parts = parts.masked_fill((structure.cell_sites < 0)[..., None], torch.nan)
        assert torch.equal(structure.compose(parts), x)

    @draw.data
    def test_downsample_is_the_mean_over_the_upsampled_sites(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)
        means = structure.downsample(x)
        for block, sites in enumerate(rows(structure.upsample(torch.arange(structure.num_blocks)))):
            torch.testing.assert_close(means[:, :, block], x[:, :, sites].mean(dim=2))

    @draw.data
    def test_by_block_lists_the_sites_of_each_block(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)
        laid = structure.by_block(x)
        for block, sites in enumerate(structure.blocks.tolist()):
            for place, site in enumerate(sites):
                expected = torch.zeros_like(x[:, :, 0]) if site < 0 else x[:, :, site]
                assert torch.equal(laid[:, :, block, place], expected)

    @draw.data
    def test_the_partition_is_consistent(self, data: Any) -> None:
        """Definition 5: upsampling the blocks of a cell gives the sites of the cell."""
        structure = data.draw(self.structures())
        sites = structure.upsample(structure.cells).flatten(1)
        assert torch.equal(sites, structure.cell_sites)
        assert torch.equal(
            structure.upsample(torch.tensor(-1)),
            torch.full_like(sites[0, :1], -1).expand(structure.sites_per_block),
        )

    @draw.data
    def test_methods_agree_with_the_ones_derived_from_the_tables(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)
        for name in ("downsample", "block_sums", "partition", "by_block"):
            derived = getattr(SpatialStructure, name)(structure, x)
            torch.testing.assert_close(getattr(structure, name)(x), derived)
        parts = structure.partition(x)
        assert torch.equal(structure.compose(parts), SpatialStructure.compose(structure, parts))

    @draw.data
    def test_sixteen_bit_means_are_summed_in_float32(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = (_features(data, structure) + 100).bfloat16()
        means = structure.downsample(x)
        assert means.dtype == torch.bfloat16
        assert torch.equal(means, structure.downsample(x.float()).bfloat16())

    @draw.data
    def test_coarsening_makes_blocks_sites(self, data: Any) -> None:
        structure = data.draw(self.structures())
        coarse = structure.coarsen(1)
        assert coarse.num_sites == structure.num_blocks
        assert coarse.num_blocks == structure.num_blocks
        if structure.time is not None:
            latest = [int(structure.time[sites].max()) for sites in rows(structure.blocks)]
            assert coarse.time is not None
            by_block = [latest[int(b)] for b in range(structure.num_blocks)]
            assert coarse.time.tolist() == self.coarse_time(structure, by_block)

    def coarse_time(self, structure: SpatialStructure, latest: list[int]) -> list[int]:
        """Say which times `coarsen` gives, from the latest time in each block: these.

        Override it for a structure that counts its times anew, as grids do.
        """
        return latest

    @draw.data
    def test_blocks_near_a_cell_are_its_own_and_more_with_the_radius(self, data: Any) -> None:
        """Only for a structure that overrides `near_cells`."""
        structure = data.draw(self.structures())
        near = [_near_cells(structure, radius) for radius in range(3)]
        assert near[0] == [set(cell) for cell in rows(structure.cells)]
        for smaller, larger in pairwise(near):
            assert all(few <= many for few, many in zip(smaller, larger, strict=True))

    @draw.data
    def test_a_cell_is_near_those_that_are_near_it(self, data: Any) -> None:
        """Only for a structure that overrides `near_cells`."""
        structure = data.draw(self.structures())
        near = _near_cells(structure, data.draw(st.integers(1, 2)))
        cell_of_block = structure.cell_of_block.tolist()
        pairs = {(cell, cell_of_block[block]) for cell, row in enumerate(near) for block in row}
        assert pairs == {(there, here) for here, there in pairs}

    @draw.data
    def test_one_that_has_been_used_can_be_pickled(self, data: Any) -> None:
        structure = data.draw(self.structures())
        structure.kept_with(structure, "own", lambda own, _: own.blocks)
        again = pickle.loads(pickle.dumps(structure))
        assert torch.equal(again.blocks, structure.blocks)
        assert torch.equal(again.cells, structure.cells)

    @draw.data
    def test_the_structure_of_its_own_device_is_itself(self, data: Any) -> None:
        structure = data.draw(self.structures())
        assert structure.to("cpu") is structure

    @draw.data
    def test_a_copy_for_another_device_is_made_once(self, data: Any) -> None:
        structure = data.draw(self.structures())
        moved = structure.to("meta")
        assert moved.device == torch.device("meta")
        assert moved.blocks.device == torch.device("meta")
        assert structure.to("meta") is moved

    @draw.data
    def test_a_copy_for_another_device_is_the_same_space(self, data: Any) -> None:
        structure = data.draw(self.structures())
        moved = structure.to("meta")
        for name in ("num_sites", "num_blocks", "num_cells", "is_even"):
            assert getattr(moved, name) == getattr(structure, name), name
        for name in ("blocks", "cells", "time", "group"):
            own, there = getattr(structure, name), getattr(moved, name)
            assert (there is None) == (own is None), name
            if own is not None:
                assert (there.shape, there.dtype, there.device.type) == (
                    own.shape,
                    own.dtype,
                    "meta",
                )

    @draw.data
    def test_one_that_was_used_in_inference_mode_can_train(self, data: Any) -> None:
        structure = data.draw(self.structures())
        x = _features(data, structure)

        def means_at_sites(x: torch.Tensor) -> torch.Tensor:
            again = structure.compose(structure.partition(x))
            return structure.downsample(again).index_select(2, structure.block_of_site)

        with torch.inference_mode():
            out = means_at_sites(x)
        x.requires_grad_()
        torch.testing.assert_close(means_at_sites(x), out.clone())
        means_at_sites(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.ones_like(x))


def _near_cells(structure: SpatialStructure, radius: int) -> list[set[int]]:
    """List the blocks near each cell; skip the test where the structure knows of none."""
    try:
        return [set(row) for row in rows(structure.near_cells(radius))]
    except NotImplementedError:
        pytest.skip(f"{type(structure).__name__} does not know which blocks are near a cell")


def _features(data: Any, structure: SpatialStructure) -> torch.Tensor:
    generator = seeded(data.draw(st.integers(0, 2**20)))
    return torch.randn(2, 1, structure.num_sites, 3, generator=generator, dtype=torch.float64)
