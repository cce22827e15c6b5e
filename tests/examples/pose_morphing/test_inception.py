"""Inception-v3 with weights from a file."""

from pathlib import Path

import pytest
import torch

from examples.common.inception import Inception, load_inception, pooled

PARAMETERS = 23_834_568  # of torchvision's inception_v3 without its auxiliary head


def save(path: Path, network: Inception, classes: int) -> None:
    head = {"fc.weight": torch.zeros(classes, 2048), "fc.bias": torch.zeros(classes)}
    torch.save(network.state_dict() | head, path)


def test_it_has_the_parameters_of_the_published_network() -> None:
    with torch.device("meta"):
        count = sum(x.numel() for x in Inception(fid=False).parameters())
    assert count + 2049 * 1000 == PARAMETERS


@pytest.mark.parametrize(("classes", "name"), [(1008, "fid"), (1000, "frechet_inception")])
def test_weights_from_a_file_give_the_features_of_their_network(
    tmp_path: Path, classes: int, name: str
) -> None:
    torch.manual_seed(0)
    network = Inception(fid=classes == 1008)
    save(tmp_path / "weights.pth", network, classes)
    called, loaded = load_inception(tmp_path / "weights.pth")
    assert called == name
    images = torch.rand(1, 3, 64, 32)
    features = loaded(images)
    assert features.shape == (1, 2048)
    assert features.std() > 0
    assert torch.equal(features, network(images))


def test_a_pool_inside_leaves_padding_out() -> None:
    ones = torch.ones(1, 1, 4, 4)
    assert pooled(ones, "average")[0, 0, 0, 0] == pytest.approx(4 / 9)
    assert torch.equal(pooled(ones, "average_inside"), ones)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.pth (is not a file|does not hold)"):
        load_inception(tmp_path / "missing.pth")
    path = tmp_path / "other.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"other\.pth (is not a file|does not hold)"):
        load_inception(path)
    torch.save({"fc.weight": torch.zeros(1008, 1)}, path)
    with pytest.raises(ValueError, match="lacks 470 of the weights of Inception-v3, Conv2d_1a"):
        load_inception(path)
