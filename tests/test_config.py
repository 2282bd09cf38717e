import os

import numpy as np
import pytest
import torch

from xai_lib import config


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_profiles():
    assert set(config.PROFILES) == {"smoke", "lab", "paper"}
    assert config.profile("lab").name == "lab" and config.profile("lab").budget_s == 180
    with pytest.raises(ValueError, match="profile: 'fast' is unknown, expected one of smoke, lab, paper"):
        config.profile("fast")


def test_runtime_on_the_cpu(threads):
    settings = config.runtime("cpu", threads=1)
    assert settings.device == torch.device("cpu") and settings.threads == 1 and settings.bf16 is False
    assert torch.get_num_threads() == 1
    assert config.runtime("cpu").threads == 1  # None leaves the number as it is


def test_runtime_chooses_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config.runtime("auto").device.type == "cpu"
    with pytest.raises(ValueError, match="device: 'cuda' was asked for, but torch sees no CUDA device"):
        config.runtime("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = config.runtime("auto", bf16="auto")
    assert settings.device.type == "cuda" and settings.bf16 and settings.channels_last


@pytest.mark.parametrize("has", [True, False])
def test_bf16_auto_follows_the_processor(monkeypatch, has):
    monkeypatch.setattr(config, "_cpu_has_bf16", lambda: has)
    assert config.runtime("cpu", bf16="auto").bf16 is has
    assert config.runtime("cpu", bf16=False).bf16 is False
    assert config.runtime("cpu", bf16=True).bf16 is True


def test_bf16_is_off_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert config._cpu_has_bf16() is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "toaster"}, "device: 'toaster' is not a torch device"),
        ({"device": "cpu", "threads": 0}, "threads: 0 is below 1"),
        ({"device": "cpu", "bf16": "yes"}, "bf16: 'yes' is not True, False or 'auto'"),
    ],
)
def test_runtime_names_a_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        config.runtime(**arguments)


def test_autocast_changes_the_type_only_where_bf16_is_on():
    a = torch.ones(2, 2)
    with config.Runtime(torch.device("cpu"), 1, bf16=False, channels_last=False).autocast():
        assert (a @ a).dtype == torch.float32
    with config.Runtime(torch.device("cpu"), 1, bf16=True, channels_last=False).autocast():
        assert (a @ a).dtype == torch.bfloat16


def test_generators_repeat_and_are_apart():
    draw = lambda *key: config.numpy_generator(*key).random(4)  # noqa: E731
    np.testing.assert_array_equal(draw(0, "split"), draw(0, "split"))
    assert len({tuple(draw(*key)) for key in [(0,), (1,), (0, "split"), (0, "split", 1), (0, "bootstrap")]}) == 5
    torch_draw = lambda *key: torch.rand(4, generator=config.torch_generator(*key))  # noqa: E731
    assert torch.equal(torch_draw(3, "init"), torch_draw(3, "init"))
    assert not torch.equal(torch_draw(3, "init"), torch_draw(4, "init"))


def test_generators_leave_the_global_ones_alone():
    np_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    config.numpy_generator(0).random()
    torch.rand(1, generator=config.torch_generator(0))
    np.testing.assert_array_equal(np.random.get_state()[1], np_before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_a_stream_is_the_same_on_every_machine():
    assert config._stream(0, "bootstrap") == 3363059274055546165  # the first 8 bytes of sha256("0/bootstrap")


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True])
def test_a_wrong_seed_is_named(seed):
    with pytest.raises(ValueError, match=r"seed: .* is not an integer >= 0"):
        config.numpy_generator(seed)


def test_a_numpy_integer_is_a_seed():
    assert config._stream(np.int64(5), "x") == config._stream(5, "x")


def test_folders(monkeypatch, tmp_path):
    assert (config.repository_dir() / "xai_lib" / "config.py").is_file()
    monkeypatch.delenv("XAI_DATA_DIR", raising=False)
    monkeypatch.delenv("XAI_CACHE_DIR", raising=False)
    assert config.data_dir() is None
    assert config.cache_dir() == config.repository_dir() / ".cache"
    monkeypatch.setenv("XAI_DATA_DIR", "~/sets")
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(config.data_dir()) == "/home/someone/sets" and config.cache_dir() == tmp_path


def test_output_dir_is_made(monkeypatch, tmp_path):
    assert config.output_dir(tmp_path / "a" / "b").is_dir()
    monkeypatch.setenv("XAI_OUTPUT_DIR", str(tmp_path / "c"))
    assert config.output_dir() == tmp_path / "c" and (tmp_path / "c").is_dir()
    monkeypatch.delenv("XAI_OUTPUT_DIR")
    monkeypatch.setattr(config, "repository_dir", lambda: tmp_path)
    assert config.output_dir() == tmp_path / "outputs"


def test_an_output_dir_that_cannot_be_used_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"output folder .*file cannot be made"):
        config.output_dir(tmp_path / "file")
    with pytest.raises(PermissionError, match=r"output folder .*file/below cannot be made"):
        config.output_dir(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"output folder .*locked cannot be written"):
        config.output_dir(tmp_path / "locked")
