"""Fisher information: gradients predict the KL divergence that noise on an output costs."""

import copy

import pytest

from nestquant_cli.evaluation.divergence import divergence
from nestquant_cli.pipeline.fisher import fisher
from tests.families import gaussian, logits, make_model, random_ids


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_noise_on_an_output_costs_what_the_gradients_say(family: str) -> None:
    model = make_model(family)
    windows = random_ids(24, 32)
    found = fisher(copy.deepcopy(model), windows, 0)
    name = next(name for name in found if name.endswith("layers.0.self_attn.v_proj"))
    module = model.get_submodule(name)
    before = logits(model, windows).log_softmax(-1)
    size = 0.05
    noise = size * gaussian(24, 32, module.out_features, seed=1)
    handle = module.register_forward_hook(lambda *arguments: arguments[2] + noise)
    cost = float(divergence(before, logits(model, windows).log_softmax(-1))[0].mean())
    handle.remove()
    assert cost == pytest.approx(0.5 * size**2 * float(found[name].outputs.sum()), rel=0.25)
    assert all(parameter.grad is None for parameter in model.parameters())
