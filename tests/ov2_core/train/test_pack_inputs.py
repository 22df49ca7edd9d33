"""Packs to one row: against a loop over tokens."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from step_inputs import codec, frames, make_batch, mixed_pack, still, text

from ov2_core.model.chatml import IGNORE_INDEX
from ov2_core.train.pack_inputs import pack_inputs

PACKS = {
    "one pack": [mixed_pack()],
    "packs of several lengths": [[text("a")], mixed_pack(), [still("b")], [text("c", words=50), frames("d")]],
    "text alone": [[text("a"), text("b", words=2)]],
    "one sample": [[codec("a")]],
    "a pack without samples": [[text("a")], [], [text("b")]],
}


def naive_row(batch):
    """(ids, positions, sample of each token, [(row, target, sample)]) token by token."""
    ids, positions, owners, scored = [], [], [], []
    sample = 0
    for row, lengths in enumerate(batch.sample_lengths):
        at = 0
        for length in lengths:
            for place in range(length):
                label = int(batch.labels[row, at + place])
                if label != IGNORE_INDEX and place > 0:
                    scored.append((len(ids) - 1, label, sample))
                ids.append(int(batch.input_ids[row, at + place]))
                positions.append(place)
                owners.append(sample)
            at += length
            sample += 1
    return ids, positions, owners, scored


@pytest.mark.parametrize("packs", PACKS.values(), ids=PACKS)
def test_a_row_equals_a_loop_over_tokens(packs):
    batch = make_batch(packs)
    inputs = pack_inputs(batch)
    ids, positions, owners, scored = naive_row(batch)
    assert inputs.input_ids.tolist() == [ids]
    assert inputs.position_ids.tolist() == [positions]
    assert inputs.rows.tolist() == [row for row, _, _ in scored]
    assert inputs.targets.tolist() == [target for _, target, _ in scored]
    assert inputs.target_samples.tolist() == [sample for _, _, sample in scored]
    assert inputs.num_tokens == len(ids) == batch.num_tokens
    assert list(inputs.segments.lengths) == [n for lengths in batch.sample_lengths for n in lengths]
    assert all(owners[row] == owners[row + 1] for row, _, _ in scored)
    assert [sample.id for sample in inputs.samples] == [one.id for pack in packs for one in pack]


def test_targets_are_what_the_model_itself_is_scored_on():
    """transformers shifts labels by one over the padded rows; equal, since first tokens are never labels."""
    batch = make_batch(PACKS["packs of several lengths"])
    shifted = batch.labels[:, 1:]
    assert pack_inputs(batch).targets.tolist() == shifted[shifted != IGNORE_INDEX].tolist()


def test_a_label_of_a_first_token_is_not_scored():
    batch = make_batch([[text("a"), text("b")]])
    second = batch.sample_lengths[0][0]
    batch.labels[0, [0, second]] = batch.input_ids[0, [0, second]]
    inputs = pack_inputs(batch)
    assert second - 1 not in inputs.rows.tolist()
    assert -1 not in inputs.rows.tolist()
    assert inputs.num_targets == pack_inputs(make_batch([[text("a"), text("b")]])).num_targets


def test_samples_tell_their_pack_source_and_kind():
    inputs = pack_inputs(make_batch([[text("a"), codec("b")], [still("c"), frames("d")]], first=7))
    assert [(one.pack, one.source, one.id, one.input_kind) for one in inputs.samples] == [
        ("ps_00000007", "told", "a", "text"),
        ("ps_00000007", "seen", "b", "codec"),
        ("ps_00000008", "seen", "c", "image"),
        ("ps_00000008", "seen", "d", "frames"),
    ]


def test_pixels_and_groups_are_those_of_the_batch_and_normalised_on_demand():
    batch = make_batch([mixed_pack()])
    inputs = pack_inputs(batch)
    assert inputs.num_patches == len(batch.pixel_values) == sum(inputs.patch_group_lengths)
    assert inputs.pixel_values.dtype == torch.uint8
    pixels = inputs.pixels(torch.float32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    torch.testing.assert_close(pixels, (batch.pixel_values.float() / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("packs", [[], [[]], [[], []]])
def test_a_batch_without_samples_is_one_token_that_is_not_scored(packs):
    inputs = pack_inputs(make_batch(packs))
    assert (inputs.samples, inputs.num_tokens, inputs.num_targets, inputs.num_patches) == ((), 1, 0, 0)
    assert inputs.pixels(torch.float32) is None
    assert inputs.segments.lengths == (1,)
