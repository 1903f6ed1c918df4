"""The certificate in a checkpoint is a claim: it is compared with the weights, and void if anything disagrees."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from subdeq_plugin.certificates import certify
from subdeq_plugin.data import load
from subdeq_plugin.errors import CheckpointError
from subdeq_plugin.training import (
    StoredVerdict,
    TrainConfig,
    build_model,
    load_checkpoint,
    train,
    verify_certificate,
)
from subdeq_plugin.training.checkpoint import load_model_state, tensors_digest

from .stored import make, rewrite, save, weight_bytes

WEIGHT = "model.deq.layer.parametrizations.weight.original"


@pytest.fixture
def path(tmp_path) -> Path:
    make(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def verdict(path: Path) -> StoredVerdict:
    stored = load_checkpoint(path)
    model = build_model(stored.config, stored.image_shape, stored.classes)
    load_model_state(model, stored)
    found = verify_certificate(model, stored)
    # Whatever the file claims, what is handed out is what certify says of these weights.
    assert found.certificate.to_dict() == certify(model.deq.layer).to_dict()
    return found


def repack(path: Path, change) -> None:
    """Read a file with safetensors, change a tensor, and write it again with the header as it was."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata)


def test_an_untouched_file_is_verified(path):
    found = verdict(path)
    assert not found.void and found.differing == () and found.certificate.unique
    assert found.weights_intact is True and found.header_intact is True
    assert "verified" in found.message


def test_writing_a_file_again_unchanged_does_not_void_it(path):
    repack(path, lambda tensors: None)
    assert not verdict(path).void


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("offset", [0, 1, -4, -2])
def test_one_flipped_bit_of_a_weight_voids_it(path, bit, offset):
    begin, end = weight_bytes(path, WEIGHT)
    raw = bytearray(path.read_bytes())
    raw[begin + offset if offset >= 0 else end + offset] ^= 1 << bit
    path.write_bytes(raw)
    found = verdict(path)
    assert found.void and found.weights_intact is False and found.header_intact is True
    assert "void" in found.message and "weights were changed" in found.message


@pytest.mark.parametrize("name", [WEIGHT, "model.head.bias", "model.mean"])
def test_a_tiny_change_of_any_tensor_voids_it(path, name):
    def change(tensors):
        tensors[name].view(-1)[0] += 1e-7

    repack(path, change)
    found = verdict(path)
    assert found.void and found.weights_intact is False
    assert found.certificate.unique  # the change costs the stored certificate, not the proof


def test_the_fresh_certificate_sees_what_the_change_did(path):
    def change(tensors):
        tensors["model.deq.layer.injection.weight"][0, 0] = float("nan")

    repack(path, change)
    found = verdict(path)
    assert found.void and "unique" in found.differing and not found.certificate.unique


def test_nan_weights(path):
    def change(tensors):
        tensors[WEIGHT][1, 2] = float("nan")

    repack(path, change)
    found = verdict(path)
    assert found.void and not found.certificate.unique
    assert any("NaN" in reason for reason in found.certificate.reasons)


def test_a_claim_of_uniqueness_for_an_uncertified_layer(tmp_path):
    path = tmp_path / "a.safetensors"
    make(path, 3.0, weight="signed", shift=1.2)
    assert not verdict(path).void and not verdict(path).certificate.unique

    def claim(header):
        header["certificate"] |= {"unique": True, "theorem": "A", "mu": 0.5, "rate": 0.5, "metric": "thompson"}

    rewrite(path, claim)
    found = verdict(path)
    assert found.void and found.header_intact is False and not found.certificate.unique
    assert set(found.differing) == {"unique", "theorem", "mu", "rate", "metric"}
    assert "header was edited" in found.message


def test_a_false_claim_with_matching_digests(tmp_path):
    """Whoever writes the file can write digests too: the comparison with the weights must not depend on them."""
    path = tmp_path / "a.safetensors"
    model = make(path, 3.0, weight="signed", shift=1.2)
    config = load_checkpoint(path).config
    save(path, model, config, {**load_checkpoint(path).claim, "unique": True, "theorem": "monotone"})
    found = verdict(path)
    assert found.weights_intact is True and found.header_intact is True
    assert found.void and found.differing == ("unique", "theorem")
    assert "disagrees with the weights in unique, theorem" in found.message and not found.certificate.unique


@pytest.mark.parametrize(
    ("entry", "value"),
    [("rate", 0.1), ("rate", None), ("rate", "0.7"), ("mu", 0.7), ("rate", float("nan")), ("unique", 1), ("scope", "")],
)
def test_any_disagreement_voids_it(path, entry, value):
    rewrite(path, lambda header: (header["certificate"].update({entry: value}), header.pop("digests")))
    found = verdict(path)
    assert found.void and found.differing == (entry,) and found.weights_intact is None


def test_a_claim_without_entries_is_void(path):
    rewrite(path, lambda header: header.update(certificate={}))
    assert verdict(path).void


def test_edited_settings_void_it(path):
    rewrite(path, lambda header: header["config"].update(shift=0.2))
    found = verdict(path)
    assert found.void and found.header_intact is False and "rate" in found.differing


def test_older_files_are_verified_again_only(path):
    rewrite(path, lambda header: header.pop("digests"))
    found = verdict(path)
    assert not found.void and found.weights_intact is None and found.header_intact is None
    assert "no digest" in found.message


@pytest.mark.parametrize("keep", [0, 7, 60, 0.5, -1])
def test_truncated_files_are_refused(path, keep):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("digests", [[], {}, "x", {"model": "x"}])
def test_malformed_digests_are_refused(path, digests):
    rewrite(path, lambda header: header.update(digests=digests))
    with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
        load_checkpoint(path)


def test_resuming_needs_the_file_as_it_was_written(tmp_path):
    data = load("digits")
    config = TrainConfig.for_dataset("digits", units=8, epochs=1, batch_size=512)
    path = train(config, data, tmp_path / "run").checkpoint
    whole = path.read_bytes()

    def nudge(tensors):
        tensors[WEIGHT][0, 0] += 1e-7

    repack(path, nudge)
    with pytest.raises(CheckpointError, match=r"weights were changed.*unchanged copy"):
        train(config, data, tmp_path / "other", resume=path)
    path.write_bytes(whole)
    rewrite(path, lambda header: header["certificate"].update(mu=0.1))
    with pytest.raises(CheckpointError, match="header was changed"):
        train(config, data, tmp_path / "other", resume=path)
    assert not (tmp_path / "other").exists()
    rewrite(path, lambda header: header.pop("digests"))  # as an older version would have written it
    assert train(config, data, tmp_path / "other", resume=path).certificate.unique


def test_the_digest_tells_names_dtypes_shapes_and_bytes_apart():
    one = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    same = {"b": torch.ones(()), "a": torch.zeros(3, 2).t()}
    assert tensors_digest(one) == tensors_digest(same)
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(())},
        {"a": torch.zeros(2, 3), "c": torch.ones(())},
        {"a": torch.zeros(2, 3), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(())},
        {"a": -torch.zeros(2, 3), "b": torch.ones(())},
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.ones(())},
    ]
    assert len({tensors_digest(tensors) for tensors in [one, *others]}) == 1 + len(others)
