"""Weights that stay in the host's memory: as many as do not fit, and the tokens are the same."""

import copy

import pytest
import torch

from model.duplex import DuplexLM
from model.streaming.offload import HostLinear, is_offloaded, offload
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from tests.model.golden import language_model


@pytest.fixture(scope="module")
def model() -> DuplexLM:
    return language_model("lm_window")


def layer_bytes(model: DuplexLM) -> int:
    layer = model.temporal.layers[0]
    parts = (layer.attention.in_proj, layer.attention.out_proj, layer.gating.linear_in, layer.gating.linear_out)
    return sum(part.weight.nbytes for part in parts)


def test_the_last_layers_stay_in_the_host_as_many_as_do_not_fit(model: DuplexLM) -> None:
    layers = len(model.temporal.layers)
    rest = sum(parameter.nbytes for parameter in model.parameters()) - layers * layer_bytes(model)
    for fit in range(layers + 1):
        small = copy.deepcopy(model)
        assert offload(small, "cpu", rest + fit * layer_bytes(model)) == layers - fit
        held = [any(isinstance(part, HostLinear) for part in layer.modules()) for layer in small.temporal.layers]
        assert held == [number >= fit for number in range(layers)]
        assert is_offloaded(small) == (fit < layers)
    assert offload(copy.deepcopy(model), "cpu", 0) == layers


def test_a_model_in_the_hosts_memory_says_what_it_says_elsewhere(model: DuplexLM) -> None:
    other = copy.deepcopy(model)
    offload(other, "cpu", 0)
    user = torch.randint(model.config.card, (60, 2, 8), generator=torch.Generator().manual_seed(2))
    prompt = torch.randint(model.config.card, (2, 17, 9), generator=torch.Generator().manual_seed(3))
    said = []
    for each in (model, other):
        stream = DuplexStream(each, Sampling(audio_top_k=20))
        state = stream.init_state(2, [1, 2])
        stream.prefill(state, prompt)
        said.append(torch.stack([stream.step(state, codes) for codes in user]))
    assert torch.equal(*said)
