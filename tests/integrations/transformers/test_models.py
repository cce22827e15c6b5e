"""Every kind of model that `enable` knows: exact at all blocks, and it trains at few."""

import pytest
import torch

pytest.importorskip("transformers")

import ndgpa
from ndgpa.integrations.transformers import disable, enable
from tests.integrations.transformers.models import KINDS, Kind, output

EVERYTHING = 10_000
each = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@each
@torch.no_grad()
def test_with_every_block_kept_it_is_the_model_that_it_was(kind: Kind) -> None:
    model, inputs = kind()
    wanted = output(model, inputs)
    changed = enable(model, EVERYTHING, block=3, cell=2)
    assert len(changed) == kind.attention
    torch.testing.assert_close(output(model, inputs), wanted, rtol=0, atol=1e-5)


@each
@torch.no_grad()
def test_with_few_blocks_it_is_another_model_until_it_is_disabled(kind: Kind) -> None:
    model, inputs = kind()
    wanted = output(model, inputs)
    enable(model, 1, block=3)
    assert (output(model, inputs) - wanted).abs().max() > 1e-3
    disable(model)
    assert torch.equal(output(model, inputs), wanted)


@each
def test_with_few_blocks_every_parameter_that_had_a_gradient_has_one(kind: Kind) -> None:
    model, inputs = kind()
    model.train()
    output(model, inputs).square().mean().backward()
    wanted = {name for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    enable(model, ndgpa.TopK(2, force=ndgpa.Own()), block=3)
    output(model, inputs).square().mean().backward()
    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert set(grads) == wanted
    assert all(grad.isfinite().all() for grad in grads.values())
