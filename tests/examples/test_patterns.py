from pathlib import Path

from examples.images.patterns import main, operators, painted, spaces


def test_the_sheet_is_written(tmp_path: Path) -> None:
    main(tmp_path / "patterns.png")
    assert 20_000 < (tmp_path / "patterns.png").stat().st_size < 600_000


def test_every_operator_paints_something_in_every_space() -> None:
    for space in spaces():
        for name, operator in operators(len(space.grid.shape)).items():
            colours = painted(operator, space)
            assert colours.shape == (space.grid.num_sites, 3), name
            assert (colours.min(axis=1) < 0.9).any(), name
