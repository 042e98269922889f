"""What the encoder tests share, as fixtures."""

import json

import pytest
import torch

from tests.conftest import perturb as perturb_parameters
from tests.encoders.toy_towers import CONFIGS, SIZES
from vlm.encoder import Encoder
from vlm.schema import check_options
from vlm.weights import planning


def _perturb(module, seed=0):
    """The shared one, and running statistics too, which a fresh batch norm has at zero and one; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    perturb_parameters(module, seed)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator) * 0.5)
    return module.eval()


def _pixels(height, width=None, views=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, 3, height, width or height, generator=generator)


def _same(left, right, atol=1e-5):
    torch.testing.assert_close(left, right, atol=atol, rtol=1e-4)


def _check_contract(encoder: Encoder, sizes=()):
    """What the base promises: shapes told = shapes given, also on the meta device, and `resolved()` is the encoder."""
    encoder = encoder.eval()
    with torch.no_grad():
        for size in (encoder.image.size, *sizes):
            given = encoder(_pixels(*size))
            told = encoder.shape(size)
            assert (given.tokens.shape[1], given.width, given.grid) == (told.tokens, told.width, told.grid)
            assert told.tokens == encoder.grid(size)[0] * encoder.grid(size)[1] + encoder.prefix
            assert given.tokens.std(dim=1).max() > 1e-4, "the tokens do not depend on the place"
        other = encoder(_pixels(*encoder.image.size, seed=2)).tokens
        assert (other - encoder(_pixels(*encoder.image.size)).tokens).abs().max() > 1e-3, "nor on the image"

    options = check_options(type(encoder), json.loads(json.dumps(encoder.resolved())))  # as a saved model reads them
    assert "weights" not in options
    again = type(encoder)(**options)
    again.load_state_dict(encoder.state_dict())
    assert again.resolved() == encoder.resolved()
    assert (again.image, again.width, again.prefix, again.layers) == (
        encoder.image,
        encoder.width,
        encoder.prefix,
        encoder.layers,
    )
    with torch.no_grad():
        size = (sizes or (encoder.image.size,))[-1]
        torch.testing.assert_close(again.eval()(_pixels(*size)).tokens, encoder(_pixels(*size)).tokens, atol=0, rtol=0)

    with planning():
        planned = type(encoder)(**options)
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert planned.shape() == encoder.shape()
    assert {name: tensor.shape for name, tensor in planned.state_dict().items()} == {
        name: tensor.shape for name, tensor in encoder.state_dict().items()
    }


@pytest.fixture(scope="session")
def perturb():
    return _perturb


@pytest.fixture(scope="session")
def pixels():
    return _pixels


@pytest.fixture(scope="session")
def same():
    return _same


@pytest.fixture(scope="session")
def check_contract():
    return _check_contract


@pytest.fixture
def build_tower(perturb):
    """`build_tower(kind, **options)` -> a perturbed toy tower of a family."""
    from vlm.encoders.tower import Tower

    def build(kind, **options):
        torch.manual_seed(0)
        config = {"model_type": kind, **CONFIGS[kind]}
        return perturb(Tower(config=config, **{"size": SIZES.get(kind, 32)} | options))

    return build
