import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from xai_lib import training_state as ts

WHOSE = {"config": {"epochs": 3, "patience": None, "learning_rate": 0.1}, "seed": 4}
HISTORY = [{"loss": 0.7}, {"loss": 0.1 + 0.2}]


def network(seed=0, outputs=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, outputs))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.arange(32.0).view(2, 1, 4, 4) / 32).square().sum().backward()
    optimizer.step()


def trained(seed=0):
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    step(model, optimizer)
    return model, optimizer


def fresh():
    model = network(9)
    return model, torch.optim.Adam(model.parameters(), 0.1)


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def test_copy_holds_what_training_can_change():
    model = network()
    model[0].weight.requires_grad_(False)
    assert set(ts.copy(model)) == set(model.state_dict()) - {"0.weight"}
    model.frozen = True
    assert set(ts.copy(model)) == {name for name, p in model.named_parameters() if p.requires_grad}
    kept = ts.copy(model)["3.bias"]
    with torch.no_grad():
        model[3].bias.add_(1)
    assert not torch.equal(kept, model[3].bias)


def test_there_and_back(tmp_path):
    path = tmp_path / "deep" / "state.safetensors"
    model, optimizer = trained()
    best = ts.copy(network(5))
    ts.save(path, model, optimizer, best, HISTORY, WHOSE)
    again, other = fresh()
    history, found = ts.resume(path, again, other, WHOSE)
    assert history == HISTORY and same(found, best)
    assert same(again.state_dict(), model.state_dict())
    step(model, optimizer), step(again, other)  # moments of Adam are there as well
    assert same(again.state_dict(), model.state_dict())
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    """Long trainings are resumed: names and text of the file stay as they are."""
    model, optimizer = trained()
    ts.save(tmp_path / "state", model, optimizer, ts.copy(model), HISTORY, WHOSE)
    with safe_open(tmp_path / "state", "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"history": HISTORY, **WHOSE}
        assert {name.split("/")[0] for name in file.keys()} == {"model", "best", "optimizer"}
        assert "model/3.bias" in file.keys() and "optimizer/0/exp_avg" in file.keys()


@pytest.mark.parametrize("whose", [WHOSE | {"seed": 5}, WHOSE | {"config": {"epochs": 4}}, {"seed": 4}])
def test_another_training_is_refused(tmp_path, whose):
    model, optimizer = trained()
    ts.save(tmp_path / "state", model, optimizer, {}, HISTORY, WHOSE)
    with pytest.raises(ValueError, match=r"state: .*state belongs to a training with other settings or another seed"):
        ts.resume(tmp_path / "state", *fresh(), whose)


def test_another_network_is_refused(tmp_path):
    model, optimizer = trained()
    ts.save(tmp_path / "state", model, optimizer, {}, HISTORY, WHOSE)
    for other in (network(outputs=2), nn.Linear(2, 1)):
        with pytest.raises(ValueError, match=r"state: .*state belongs to another network; delete it"):
            ts.resume(tmp_path / "state", other, optimizer, WHOSE)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "state"
    ts.save(path, *trained(), {}, HISTORY, WHOSE)
    payload = path.read_bytes()
    for bad in (payload[:-9], b"", b"x" * 100):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"state: .*state is damaged or not a training's state .* delete it"):
            ts.resume(path, *fresh(), WHOSE)
    for metadata in (None, {"training": json.dumps(WHOSE)}):  # not a training's state, or one without its history
        save_file({"head": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(ValueError, match="is damaged or not a training's state"):
            ts.resume(path, *fresh(), WHOSE)
