"""Checkpoints: what is written comes back, and what does not fit is named."""

import copy
import gzip
import json
import os
import pickle
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from xai_lib import checkpoints, models
from xai_lib.checkpoints import CheckpointError, card_path, load, save


@pytest.fixture(scope="module")
def net():
    """SqueezeNet with DRS and a little training behind it, and the network before DRS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = models.build("squeezenet1_1")
        trained = models.add_representation_scaling(copy.deepcopy(base))
        with torch.no_grad():
            for p in trained.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
    return trained, base


@pytest.fixture
def stored(net, tmp_path):
    path = tmp_path / "net.safetensors"
    save(net[0], path, {"profile": "lab"})
    return path


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def rewrite(path, change):
    """Change the weights of a checkpoint and give the card their hash."""
    state = from_bytes(path.read_bytes())
    change(state)
    payload = to_bytes(state)
    path.write_bytes(payload)
    edit_card(path, sha256=sha256(payload).hexdigest())


def edit_card(path, **fields):
    card = json.loads(card_path(path).read_text()) | fields
    card_path(path).write_text(json.dumps({k: v for k, v in card.items() if v != "remove"}))


# what is written comes back


def test_round_trip(net, stored):
    model, card = load(stored)
    assert same(model, net[0])
    assert model.spec == net[0].spec and model.frozen and not model.training
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), net[0](x))
    assert card["profile"] == "lab" and card["architecture"] == "squeezenet1_1" and card["drs"] is True
    assert card["sha256"] == sha256(stored.read_bytes()).hexdigest()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in net[0].named_parameters() if p.requires_grad
    }


def test_round_trip_of_batch_norm_statistics_padding_and_channels(tmp_path):
    model = models.build("resnet10", in_channels=3, outputs=2, padding="tensorflow").train()
    model(torch.rand(2, 3, 64, 64))  # moves the statistics
    written = save(model, tmp_path / "deep" / "net.safetensors", {})
    again, card = load(tmp_path / "deep" / "net.safetensors")
    assert same(again, model) and int(again.features.bn1.num_batches_tracked) == 1
    assert card == written and again.spec == model.spec


def test_half_precision(net, stored, tmp_path):
    small = tmp_path / "half.safetensors"
    assert save(net[0], small, {}, precision="float16")["dtype"] == "float16"
    assert 0.45 < small.stat().st_size / stored.stat().st_size < 0.55
    state, full = load(small)[0].state_dict(), net[0].state_dict()
    assert all(torch.equal(t, full[n].half().float()) and t.dtype == full[n].dtype for n, t in state.items())


# 8 bits


def test_eight_bits_by_hand():
    weight = torch.tensor([[1.27, -0.444], [0.0, 254.0]])
    packed = checkpoints._pack({"w": weight, "b": torch.tensor([0.1]), "n": torch.tensor(3)}, "int8")
    assert list(packed) == ["w", "w.scale", "b", "n"]
    assert packed["w"].dtype == torch.int8 and packed["w"].tolist() == [[127, -44], [0, 127]]
    assert packed["w.scale"].tolist() == pytest.approx([0.01, 2.0])  # one for each row: an output channel
    assert packed["b"].dtype == torch.float16 and packed["n"].dtype == torch.int64
    state = checkpoints._unpack(packed, "net.safetensors")
    assert list(state) == ["w", "b", "n"] and state["w"].dtype == torch.float32
    assert state["w"].flatten().tolist() == pytest.approx([1.27, -0.44, 0, 254])


@pytest.mark.parametrize("shape", [(5, 7), (6, 1, 3, 3), (4, 8, 1, 1)])
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e20])
def test_eight_bits_are_off_by_half_a_step_at_most(shape, size):
    weight = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[1] = 0  # a channel that died
    weight[2] *= 1e-3  # a channel has a step of its own
    again = checkpoints._unpack(checkpoints._pack({"w": weight}, "int8"), "net.safetensors")["w"]
    step = weight.flatten(1).abs().amax(1) / 127
    error = (again - weight).flatten(1).abs().amax(1)
    assert (error <= step / 2 * (1 + 1e-4)).all() and (again[1] == 0).all()
    assert (error[0] > step[0] / 20) and torch.isfinite(again).all()


def test_network_in_eight_bits(net, stored, tmp_path):
    small = tmp_path / "small.safetensors"
    card = save(net[0], small, {}, precision="int8")
    assert card["dtype"] == "int8" and 0.24 < small.stat().st_size / stored.stat().st_size < 0.28
    model, read = load(small)
    assert read == card and all(p.dtype == torch.float32 for p in model.parameters())
    own = net[0].state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            assert torch.equal(tensor, own[name].half().float())
        else:
            step = own[name].flatten(1).abs().amax(1) / 127
            assert ((tensor - own[name]).flatten(1).abs().amax(1) <= step / 2 * (1 + 1e-4)).all()
    again = tmp_path / "again.safetensors"
    save(model, again, {}, precision="int8")
    assert same(load(again)[0], model)  # nothing more is lost


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_logits_barely_move(tmp_path, precision):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("mobilenet_v2", outputs=2).train()
        x = torch.rand(16, 1, 64, 64) * torch.linspace(0.2, 1, 16).view(-1, 1, 1, 1)
        with torch.no_grad():
            for _ in range(20):
                model(x)  # batch-norm statistics that fit the images
        model.eval()
        save(model, tmp_path / "net.safetensors", {}, precision=precision)
        with torch.no_grad():
            want, got = model(x), load(tmp_path / "net.safetensors")[0](x)
    assert float(want.std()) > 0.01
    assert float((got - want).abs().max()) < 0.05 * float(want.max() - want.min())


def test_trainable_only_in_eight_bits(net, tmp_path):
    trained, base = net
    path = tmp_path / "part.safetensors"
    save(trained, path, {}, precision="int8", trainable_only=True)
    model, _ = load(path, base=base)
    assert torch.equal(model.features[0].bias, base.features[0].bias)
    assert torch.allclose(
        model.head.weight, trained.head.weight, atol=trained.head.weight.detach().abs().max().item() / 250
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.weight.scale"), "'head.weight' is in 8 bits and needs one scale for each output"),
        (
            lambda s: s.update({"head.weight.scale": torch.ones(2)}),
            "'head.weight' is in 8 bits and needs one scale for each output",
        ),
        (
            lambda s: s["head.weight.scale"].fill_(torch.nan),
            "1 weights are NaN or infinite, the first is 'head.weight.scale'",
        ),
        (lambda s: s.pop("head.weight"), "1 weights are missing, the first is 'head.weight'"),
        (
            lambda s: s.update({"head.bias.scale": torch.ones(1)}),
            "1 weights are not in the network, the first is 'head.bias.scale'",
        ),
        (
            lambda s: s.update({"head.weight": torch.zeros(1, 3, dtype=torch.int8)}),
            "1 weights are of another shape, the first is 'head.weight'",
        ),
    ],
)
def test_eight_bits_that_do_not_fit(net, tmp_path, change, message):
    path = tmp_path / "net.safetensors"
    save(net[0], path, {}, precision="int8")
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: {message}"):
        load(path)


# compressed


def test_compressed_file(net, tmp_path):
    plain, packed = tmp_path / "a.safetensors", tmp_path / "b.safetensors.gz"
    save(net[0], plain, {}, precision="int8")
    save(net[0], packed, {}, precision="int8")
    assert packed.stat().st_size < plain.stat().st_size
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert card_path(packed).name == "b.json"
    model, card = load(packed)
    assert same(model, load(plain)[0]) and card["sha256"] == sha256(packed.read_bytes()).hexdigest()
    before = packed.read_bytes()
    save(net[0], packed, {}, precision="int8")
    assert packed.read_bytes() == before  # no time of day in it
    for bad in (before[:1000], b"", b"plain", before[:100] + bytes(50) + before[150:]):
        packed.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"b\.safetensors\.gz: its hash is not the card's"):
            load(packed)
        edit_card(packed, sha256=sha256(bad).hexdigest())
        with pytest.raises(CheckpointError, match=r"b\.safetensors\.gz: not a safetensors file"):
            load(packed)
        edit_card(packed, sha256=card["sha256"])


def test_trainable_only(net, tmp_path):
    trained, base = net
    path = tmp_path / "part.safetensors"
    save(trained, path, {}, trainable_only=True)
    assert path.stat().st_size < 40_000  # 8 x 2 x up to 512 scales, 513 weights of the head
    before = copy.deepcopy(base)
    model, card = load(path, base=base)
    assert same(model, trained) and model.frozen and card["partial"] is True
    assert same(base, before) and base.spec["drs"] is False and not base.frozen


def test_trainable_only_of_a_linear_head(net, tmp_path):
    model = models.freeze_backbone(copy.deepcopy(net[1]))
    models.reset_head(model, torch.Generator().manual_seed(5))
    save(model, tmp_path / "head.safetensors", {}, trainable_only=True)
    again, _ = load(tmp_path / "head.safetensors", base=net[1])
    assert same(again, model) and again.frozen


def test_trainable_only_of_the_last_layers_with_their_statistics(tmp_path):
    base = models.build("resnet18", outputs=2)
    model = copy.deepcopy(base).requires_grad_(False)
    last = model.features[-1]  # layer4
    last.requires_grad_(True)
    model.head.requires_grad_(True)
    with torch.no_grad():
        for tensor in (*last.state_dict().values(), *model.head.state_dict().values()):
            tensor.add_(1)
    path = tmp_path / "last.safetensors"
    save(model, path, {}, trainable_only=True)
    again, _ = load(path, base=base)
    assert same(again, model) and not again.frozen
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    rewrite(path, lambda s: s.pop("head.bias"))
    with pytest.raises(CheckpointError, match="the base holds other weights"):
        load(path, base=base)


def test_a_loaded_network_can_be_saved_with_its_own_card(net, stored, tmp_path):
    model, card = load(stored)
    with torch.no_grad():
        model.head.bias.add_(1)
    written = save(model, tmp_path / "next.safetensors", card)
    assert written["profile"] == "lab" and written["sha256"] != card["sha256"]
    assert same(load(tmp_path / "next.safetensors")[0], model)


def test_no_pickle_is_written(net, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickled")

    for module, name in ((torch, "save"), (pickle, "dump"), (pickle, "dumps")):
        monkeypatch.setattr(module, name, forbidden)
    save(net[0], tmp_path / "net.safetensors", {"seed": 0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    header = (tmp_path / "net.safetensors").read_bytes()
    assert "head.weight" in json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


# reading what does not fit


def test_missing_files(net, stored):
    card = card_path(stored)
    text = card.read_text()
    card.unlink()
    with pytest.raises(CheckpointError, match=r"net\.json: missing; the checkpoint net\.safetensors needs its card"):
        load(stored)
    card.write_text(text)
    stored.unlink()
    with pytest.raises(CheckpointError, match=r"net\.safetensors: missing, although its card is there"):
        load(stored)


@pytest.mark.parametrize("text", ["no card", "", '{"architecture": '])
def test_card_that_is_not_json(stored, text):
    card_path(stored).write_text(text)
    with pytest.raises(CheckpointError, match=r"net\.json: not JSON"):
        load(stored)


@pytest.mark.parametrize("text", ["3", "null", '["architecture", "sha256"]'])
def test_card_that_is_not_a_card(stored, text):
    card_path(stored).write_text(text)
    with pytest.raises(CheckpointError, match=r"net\.json: not a card, expected a JSON object"):
        load(stored)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sha256": "remove", "drs": "remove"}, "the card lacks drs, sha256"),
        ({"architecture": "alexnet"}, "name: 'alexnet' is unknown"),
        ({"outputs": "many"}, "outputs: 'many' is not an integer"),
        ({"in_channels": 7}, "in_channels: 7 is not 1 or 3"),
        ({"padding": "odd"}, "padding: 'odd' is not"),
    ],
)
def test_card_with_a_wrong_field(stored, fields, message):
    edit_card(stored, **fields)
    with pytest.raises(CheckpointError, match=rf"net\.json: {message}"):
        load(stored)


def test_damaged_and_truncated_files(stored):
    payload = stored.read_bytes()
    flipped = payload[:-1] + bytes([payload[-1] ^ 1])
    for bad in (flipped, payload[: len(payload) // 2], b"", payload + b"x"):
        stored.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"net\.safetensors: its hash is not the card's; .* truncated"):
            load(stored)
    edit_card(stored, sha256=sha256(payload[:1000]).hexdigest())
    stored.write_bytes(payload[:1000])
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not a safetensors file"):
        load(stored)


def test_another_architecture(stored):
    assert load(stored, expect={"architecture": "squeezenet1_1", "profile": "lab"})
    with pytest.raises(CheckpointError, match=r"architecture is 'squeezenet1_1', expected 'resnet10'"):
        load(stored, expect={"architecture": "resnet10"})
    with pytest.raises(CheckpointError, match="seed is None, expected 0"):
        load(stored, expect={"seed": 0})
    edit_card(stored, architecture="resnet10")  # a card that lies
    with pytest.raises(CheckpointError, match=r"net\.safetensors: \d+ weights are missing, the first is"):
        load(stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), "1 weights are missing, the first is 'head.bias'"),
        (lambda s: s.update(tail=torch.zeros(1)), "1 weights are not in the network, the first is 'tail'"),
        (lambda s: s.update({"head.bias": torch.zeros(2)}), "1 weights are of another shape, the first is 'head.bias'"),
        (
            lambda s: s["head.weight"][0, 3].fill_(torch.nan),
            "1 weights are NaN or infinite, the first is 'head.weight'",
        ),
        (lambda s: s["head.bias"].fill_(torch.inf), "1 weights are NaN or infinite, the first is 'head.bias'"),
    ],
)
def test_weights_that_do_not_fit(stored, change, message):
    rewrite(stored, change)
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: {message}"):
        load(stored)


def test_base_that_does_not_fit(net, tmp_path):
    trained, base = net
    path = tmp_path / "part.safetensors"
    save(trained, path, {}, trainable_only=True)
    with pytest.raises(CheckpointError, match="it holds only what trained; give the frozen network"):
        load(path)
    with pytest.raises(CheckpointError, match=r"made for squeezenet1_1, the base is .*resnet10"):
        load(path, base=models.build("resnet10"))
    with pytest.raises(CheckpointError, match=r"made for squeezenet1_1, the base is .*'drs': True"):
        load(path, base=trained)
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.features[0].bias[0] += 1e-3
    with pytest.raises(CheckpointError, match="the base holds other weights than the network that this was trained on"):
        load(path, base=other)
    rewrite(path, lambda s: s.pop("head.bias"))
    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first is 'head\.bias'"):
        load(path, base=base)


# writing what cannot be written: older files stay


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (
            lambda m: m.head.weight.data[0, 0].fill_(torch.nan),
            {},
            "1 weights are NaN or infinite, the first is 'head.w",
        ),
        (
            lambda m: m.head.bias.data.fill_(70000.0),
            {"precision": "float16"},
            "1 weights are NaN or infinite, the first is 'head.b",
        ),
        (
            lambda m: m.head.weight.data[0, 0].fill_(torch.inf),
            {"precision": "int8"},
            "1 weights are NaN or infinite, the first is 'head.weight'",
        ),
        (lambda m: None, {"precision": "half"}, "precision: 'half' is not one of float32, float16, int8"),
        (lambda m: m.requires_grad_(True), {"trainable_only": True}, "trainable_only needs a frozen backbone"),
        (lambda m: None, {"card": {"auc": {1, 2}}}, "card: Object of type set is not JSON serializable"),
        (lambda m: None, {"path": "net.pth"}, r"net\.pth: a checkpoint's name ends in \.safetensors or"),
        (
            lambda m: None,
            {"path": "net.gz"},
            r"net\.gz: a checkpoint's name ends in \.safetensors or \.safetensors\.gz",
        ),
    ],
)
def test_what_cannot_be_saved(net, stored, spoil, options, message):
    before = {p.name: p.read_bytes() for p in stored.parent.iterdir()}
    model = copy.deepcopy(net[0])
    spoil(model)
    with pytest.raises(CheckpointError, match=message):
        save(model, **({"path": stored, "card": {}} | options))
    assert {p.name: p.read_bytes() for p in stored.parent.iterdir()} == before


def test_full_disk(net, stored, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = {p.name: p.read_bytes() for p in stored.parent.iterdir()}
    for module, name in ((os, "replace"), (checkpoints.Path, "write_bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space left"):
                save(net[0], stored, {"profile": "paper"})
        assert {p.name: p.read_bytes() for p in stored.parent.iterdir()} == before
