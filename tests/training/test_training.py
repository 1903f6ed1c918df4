"""Training: what it learns, exact resumption, checkpoints, bounds and the picture."""

import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from subdeq_plugin.certificates import certify
from subdeq_plugin.data import ImageData, load
from subdeq_plugin.errors import CheckpointError, OptionError
from subdeq_plugin.training import (
    TrainConfig,
    build_model,
    convergence,
    draw,
    evaluate,
    guaranteed_error,
    load_checkpoint,
    train,
)
from subdeq_plugin.training.checkpoint import load_model_state
from subdeq_plugin.training.loop import epoch_batches


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    config = TrainConfig.for_dataset("digits", units=40, epochs=4, seed=3)
    return train(config, data, tmp_path_factory.mktemp("whole"))


def test_it_learns_and_is_certified(trained, data):
    assert trained.history[-1]["test_accuracy"] > 0.9
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert trained.certificate.unique
    assert bool((trained.model.deq.layer.weight >= 0).all())
    with torch.no_grad():
        predicted = trained.model(data.test_x).argmax(dim=1)
    assert float((predicted == data.test_y).float().mean()) == pytest.approx(trained.history[-1]["test_accuracy"])


def test_resuming_is_the_same_as_never_stopping(trained, data, tmp_path):
    class Killed(Exception):
        pass

    def stop(epoch, record):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(trained.config, data, tmp_path, on_epoch=stop)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").epoch == 2
    resumed = train(trained.config, data, tmp_path, resume=tmp_path / "checkpoint.safetensors")
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    strip = [{key: value for key, value in record.items() if key != "seconds"} for record in trained.history]
    assert [{k: v for k, v in record.items() if k != "seconds"} for record in resumed.history] == strip


def test_resume_refuses_other_settings(trained, data, tmp_path):
    with pytest.raises(OptionError, match="shift"):
        train(replace(trained.config, shift=0.2), data, tmp_path, resume=trained.checkpoint)
    with pytest.raises(OptionError, match="epochs=2"):
        train(replace(trained.config, epochs=2), data, tmp_path, resume=trained.checkpoint)


def test_checkpoint_round_trip(trained, data):
    stored = load_checkpoint(trained.checkpoint)
    assert stored.config == trained.config and stored.epoch == 4
    assert stored.claim == trained.certificate.to_dict()
    model = build_model(stored.config, stored.image_shape, stored.classes)
    load_model_state(model, stored)
    assert evaluate(model, data.test_x, data.test_y) == trained.history[-1]["test_accuracy"]
    assert certify(model).unique


def _rewrite_header(path: Path, change) -> bytes:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def test_corrupt_checkpoints_are_refused(trained, tmp_path):
    path = tmp_path / "broken.safetensors"
    whole = trained.checkpoint.read_bytes()
    for content in (b"", whole[:100], whole[:-10], b"garbage" * 50, whole[:8] + b"\xff" * 200 + whole[208:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
            load_checkpoint(path)
    path.write_bytes(_rewrite_header(trained.checkpoint, lambda header: header.pop("__metadata__")))
    with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
        load_checkpoint(path)

    def older(header):
        content = json.loads(header["__metadata__"]["subdeq_checkpoint"])
        header["__metadata__"]["subdeq_checkpoint"] = json.dumps({**content, "format": 99})

    path.write_bytes(_rewrite_header(trained.checkpoint, older))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_weights_that_do_not_fit_are_refused(trained):
    stored = load_checkpoint(trained.checkpoint)
    model = build_model(replace(stored.config, units=7), stored.image_shape, stored.classes)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model_state(model, stored)


def test_unwritable_folder(trained, data, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot be written"):
        train(replace(trained.config, epochs=1), data, blocker / "sub")


def test_guaranteed_error_contains_the_true_error(trained, data):
    images = data.test_x[:40]
    bounds = guaranteed_error(trained.model, images)
    inputs = trained.model.layer_input(images)
    layer = trained.model.deq.layer
    with torch.no_grad():
        z = trained.model.deq(inputs).double()
        weight = layer.weight.double()
        outer = torch.relu(layer.injection(inputs)).double()
        reference = torch.ones_like(z)
        for _ in range(400):
            reference = torch.tanh(reference @ weight.T) + layer.activation.shift + outer
    true = (z.log() - reference.log()).abs().amax(dim=1)
    assert bool((true <= bounds).all())
    assert float(bounds.max()) < 2e-4  # f_tol is 1e-4; the rounding of float32 comes on top


def test_convergence_is_within_the_certified_rate(trained, data, tmp_path):
    steps, rate, name = convergence(trained.model, data.test_x)
    assert name == "thompson" and rate is not None
    assert len(steps) > 5
    for earlier, later in itertools.pairwise(steps):
        assert later <= rate * earlier + 1e-13
    picture = tmp_path / "picture.png"
    draw(picture, trained.model, data.test_x, trained.history)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize": "inf"},
        {"weight": "signed", "shift": 1.2},
        {"injection": "inside", "activation": "sigmoid", "shift": 0.0},
        {"kind": "conv", "units": 3, "batch_size": 256},
    ],
)
def test_variants_train(settings, data, tmp_path):
    small = replace(data, train_x=data.train_x[:512], train_y=data.train_y[:512])
    result = train(TrainConfig.for_dataset("digits", **{"units": 12, "epochs": 2, **settings}), small, tmp_path)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    signed = settings.get("weight") == "signed"
    assert result.certificate.unique or signed
    steps, rate, name = convergence(result.model, data.test_x)
    if not signed:
        assert rate is not None and name == ("hilbert" if "normalize" in settings else "thompson")
    if rate is not None:
        assert all(later <= rate * earlier + 1e-13 for earlier, later in itertools.pairwise(steps))


def test_batches_of_ranks_partition_an_epoch():
    one = torch.cat(list(epoch_batches(20, 4, seed=1, epoch=2, rank=0, ranks=1)))
    assert sorted(one.tolist()) == list(range(20))
    parts = [torch.cat(list(epoch_batches(21, 4, 1, 2, rank, 2))) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 10
    assert len(set(torch.cat(parts).tolist())) == 20
    other = torch.cat(list(epoch_batches(20, 4, seed=1, epoch=3, rank=0, ranks=1)))
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unitz": 3}, "did you mean 'units'"),
        ({"units": 0}, "units must be at least 1"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"kind": "dens"}, "did you mean 'dense'"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(OptionError, match=message):
        TrainConfig.for_dataset("digits", **given)


def test_bfloat16_training(data, tmp_path):
    small = replace(data, train_x=data.train_x[:256], train_y=data.train_y[:256])
    config = TrainConfig.for_dataset("digits", units=12, epochs=2, f_tol=1e-2, b_tol=1e-2)
    result = train(config, small, tmp_path, precision="bf16-mixed", accelerator="cpu")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.certificate.unique
