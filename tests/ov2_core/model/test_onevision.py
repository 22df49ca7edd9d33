"""The full model: names, Qwen3's own logits, placeholders, batches, packing, generation, gradients."""

import pytest

torch = pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

from model_inputs import IMAGE, codec_positions, pixels_for, prompt_for, small_model, to_raster  # noqa: E402
from transformers import Qwen3ForCausalLM  # noqa: E402

from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration  # noqa: E402
from ov2_core.model.attention import group_lengths  # noqa: E402

MIXED = [[1, 4, 2], [5, 2, 2], [1, 2, 2], [2, 2, 4]]


def _inputs(model, grid, *, seed=0):
    config = model.config.vision_config
    return {
        "input_ids": prompt_for(grid, config, seed=seed),
        "pixel_values": pixels_for(grid, config, seed=seed),
        "image_grid_thw": torch.tensor(grid),
        "patch_positions": codec_positions(grid, config.spatial_merge_size, seed=seed),
    }


def _released_names_of_8b():
    """The list of the format's description, written out."""
    names = {
        "model.visual.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "model.visual.layernorm_pre.weight": (1024,),
        "model.visual.layernorm_pre.bias": (1024,),
        "model.visual.merger.ln_q.weight": (1024,),
        "model.visual.merger.ln_q.bias": (1024,),
        "model.visual.merger.mlp.0.weight": (4096, 4096),
        "model.visual.merger.mlp.0.bias": (4096,),
        "model.visual.merger.mlp.2.weight": (4096, 4096),
        "model.visual.merger.mlp.2.bias": (4096,),
        "model.language_model.embed_tokens.weight": (151936, 4096),
        "model.language_model.norm.weight": (4096,),
        "lm_head.weight": (151936, 4096),
    }
    for i in range(24):
        at = f"model.visual.encoder.layers.{i}."
        for name, rows, columns in (
            ("self_attn.qkv", 3072, 1024),
            ("self_attn.proj", 1024, 1024),
            ("mlp.fc1", 4096, 1024),
            ("mlp.fc2", 1024, 4096),
        ):
            names[f"{at}{name}.weight"], names[f"{at}{name}.bias"] = (rows, columns), (rows,)
        for name in ("layer_norm1", "layer_norm2"):
            names[f"{at}{name}.weight"] = names[f"{at}{name}.bias"] = (1024,)
    for i in range(36):
        at = f"model.language_model.layers.{i}."
        names |= {
            at + "self_attn.q_proj.weight": (4096, 4096),
            at + "self_attn.k_proj.weight": (1024, 4096),
            at + "self_attn.v_proj.weight": (1024, 4096),
            at + "self_attn.o_proj.weight": (4096, 4096),
            at + "self_attn.q_norm.weight": (128,),
            at + "self_attn.k_norm.weight": (128,),
            at + "mlp.gate_proj.weight": (12288, 4096),
            at + "mlp.up_proj.weight": (12288, 4096),
            at + "mlp.down_proj.weight": (4096, 12288),
            at + "input_layernorm.weight": (4096,),
            at + "post_attention_layernorm.weight": (4096,),
        }
    return names


def test_state_dict_of_8b_has_the_released_names_and_shapes():
    with torch.device("meta"):
        model = LlavaOnevision2ForConditionalGeneration(LlavaOnevision2Config.from_preset("8b"))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == _released_names_of_8b()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_text_logits_equal_qwen3_bit_for_bit(tied, attention):
    model = small_model(tie_word_embeddings=tied)
    model.set_attn_implementation(attention)
    qwen = Qwen3ForCausalLM(model.config.text_config).eval()
    qwen.set_attn_implementation(attention)
    own = {k: v for k, v in model.state_dict().items() if ".visual." not in k}
    qwen.load_state_dict({k.replace("model.language_model.", "model."): v for k, v in own.items()}, strict=True)
    ids = torch.randint(0, 400, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        for inputs in ({}, {"attention_mask": mask}, {"attention_mask": mask, "labels": labels}, {"logits_to_keep": 2}):
            ours, theirs = model(input_ids=ids, **inputs), qwen(input_ids=ids, **inputs)
            assert torch.equal(ours.logits, theirs.logits)
            assert (ours.loss is None) == (theirs.loss is None)
            assert ours.loss is None or torch.equal(ours.loss, theirs.loss)


def test_save_pretrained_then_from_pretrained_is_identical(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    again = LlavaOnevision2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    for part in ("vision_config", "text_config"):
        before, after = getattr(model.config, part).to_dict(), getattr(again.config, part).to_dict()
        assert {**before, "dtype": None} == {**after, "dtype": None}  # the dtype is noted when saving
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    inputs = _inputs(model, MIXED)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_visual_tokens_stand_at_their_placeholders():
    """The language model given the same embeddings computes the same."""
    model = small_model()
    inputs = _inputs(model, MIXED)
    ids = inputs["input_ids"]
    with torch.no_grad():
        tokens = model.model.encode_visual(**{k: v for k, v in inputs.items() if k != "input_ids"})
        embeds = model.get_input_embeddings()(ids)
        embeds[0, ids[0] == IMAGE] = tokens
        wanted = model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state)
        assert torch.equal(model(**inputs).logits, wanted)


@pytest.mark.parametrize("window", [4, 2, 1])
@pytest.mark.parametrize("merge", [2, 1, 3])
def test_a_batch_of_stills_and_videos_equals_one_by_one(window, merge):
    model = small_model(frame_windows_size=window, spatial_merge_size=merge)
    grids = [[[1, 2 * merge, merge], [5, merge, merge]], [[1, merge, merge]], [[2, merge, 3 * merge]]]
    alone = [_inputs(model, grid, seed=i) for i, grid in enumerate(grids)]
    longest = max(one["input_ids"].shape[1] for one in alone)
    ids = torch.stack(
        [torch.nn.functional.pad(one["input_ids"][0], (0, longest - one["input_ids"].shape[1])) for one in alone]
    )
    mask = torch.stack([torch.arange(longest) < one["input_ids"].shape[1] for one in alone]).long()
    together = {
        "input_ids": ids,
        "attention_mask": mask,
        **{
            name: torch.cat([one[name] for one in alone])
            for name in ("pixel_values", "image_grid_thw", "patch_positions")
        },
    }
    with torch.no_grad():
        batch = model(**together).logits
        for i, one in enumerate(alone):
            wanted = model(**one).logits[0]
            torch.testing.assert_close(batch[i, : len(wanted)], wanted, rtol=0, atol=1e-5)


def test_positions_in_raster_order_equal_block_order():
    model = small_model()
    inputs = _inputs(model, MIXED)
    raster = {**inputs, "patch_positions": to_raster(inputs["patch_positions"], MIXED, 2)}
    assert not torch.equal(raster["patch_positions"], inputs["patch_positions"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**raster).logits)


def test_positions_left_out_are_those_of_the_grid():
    model = small_model()
    inputs = _inputs(model, [[3, 2, 4]])
    del inputs["patch_positions"]
    raster = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(4))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**inputs, patch_positions=raster).logits)


def test_explicit_group_lengths_replace_windows():
    model = small_model()
    inputs = _inputs(model, [[8, 2, 2]])
    with torch.no_grad():
        windows = model(**inputs).logits
        same = model(**inputs, patch_group_lengths=[16, 16]).logits
        other = model(**inputs, patch_group_lengths=torch.tensor([8, 24])).logits
    assert torch.equal(windows, same)
    assert not torch.allclose(windows, other, atol=1e-4)


def test_features_and_tokens_stand_in_for_pixels():
    model = small_model()
    inputs = _inputs(model, MIXED)
    with torch.no_grad():
        wanted = model(**inputs).logits
        visual = model.visual
        features = visual.encode(inputs["pixel_values"], inputs["patch_positions"], group_lengths(MIXED))
        got = model(input_ids=inputs["input_ids"], visual_features=features).logits
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        got = model(input_ids=inputs["input_ids"], visual_tokens=visual.merge(features)).logits
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="give one of"):
            model(**inputs, visual_features=features)


@pytest.mark.parametrize("change", [-1, 1])
def test_misaligned_placeholders_are_told_with_both_counts(change):
    model = small_model()
    inputs = _inputs(model, [[1, 2, 4]])
    ids = inputs["input_ids"][0].tolist()
    where = ids.index(IMAGE)
    ids = ids[:where] + [IMAGE] * (2 + change) + ids[where + 2 :]
    inputs["input_ids"] = torch.tensor([ids])
    with pytest.raises(ValueError, match=f"hold {2 + change} image placeholders .* make 2 visual tokens"):
        model(**inputs)


def test_placeholders_without_pixels_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match=r"hold 2 image placeholders .* make 0 visual tokens"):
        model(input_ids=prompt_for([[1, 2, 4]], model.config.vision_config))


def test_visual_inputs_that_do_not_fit_are_refused():
    model = small_model()
    inputs = _inputs(model, [[1, 2, 4]])
    with pytest.raises(ValueError, match="describes 12 patches, but pixel_values hold 8"):
        model(**{**inputs, "image_grid_thw": torch.tensor([[1, 2, 6]])})
    with pytest.raises(ValueError, match=r"row 0 .* multiples of the merge size 2, got \[1, 8, 1\]"):
        model(**{**inputs, "image_grid_thw": torch.tensor([[1, 8, 1]])})
    with pytest.raises(ValueError, match="patch_positions are for 7 patches, pixel_values for 8"):
        model(**{**inputs, "patch_positions": inputs["patch_positions"][:-1]})
    with pytest.raises(ValueError, match="pixel_values_videos: videos go in as pixel_values"):
        model(input_ids=inputs["input_ids"], pixel_values_videos=inputs["pixel_values"])
    with pytest.raises(ValueError, match="need image_grid_thw"):
        model(**{**inputs, "image_grid_thw": None})


def test_pixels_of_four_dimensions_are_accepted():
    model = small_model()
    inputs = _inputs(model, [[1, 2, 4]])
    with torch.no_grad():
        wanted = model(**inputs).logits
        inputs["pixel_values"] = inputs["pixel_values"].view(-1, 3, 4, 4)
        assert torch.equal(model(**inputs).logits, wanted)


@pytest.mark.parametrize("with_mask", [False, True])
def test_packed_sequences_equal_one_by_one(with_mask):
    """Positions that restart separate sequences, in eval mode too, where a cache would make transformers overlook them."""
    model = small_model()
    grids = [[[1, 2, 4]], [[5, 2, 2]], [[1, 2, 2], [1, 4, 2]]]
    alone = [_inputs(model, grid, seed=i) for i, grid in enumerate(grids)]
    packed = {
        name: torch.cat([one[name] for one in alone], dim=1 if name == "input_ids" else 0)
        for name in ("input_ids", "pixel_values", "image_grid_thw", "patch_positions")
    }
    lengths = [one["input_ids"].shape[1] for one in alone]
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    if with_mask:
        packed["attention_mask"] = torch.ones_like(packed["input_ids"])
    with torch.no_grad():
        parts = model(**packed).logits[0].split(lengths)
        for part, one in zip(parts, alone, strict=True):
            torch.testing.assert_close(part, model(**one).logits[0], rtol=0, atol=1e-5)


def test_packed_sequences_with_a_padding_mask_are_refused():
    model = small_model()
    ids, mask = torch.zeros(1, 6, dtype=torch.long), torch.tensor([[1, 1, 1, 1, 1, 0]])
    with pytest.raises(ValueError, match="packed sequences"):
        model(input_ids=ids, attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))


def test_left_padding_with_position_ids_is_not_taken_for_packing():
    model = small_model()
    ids = torch.randint(0, 400, (1, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions = torch.tensor([[1, 1, 0, 1, 2, 3]])
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(padded[:, 2:], model(input_ids=ids[:, 2:]).logits, rtol=0, atol=1e-5)


def _generate(model, inputs, **options):
    return model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, **options)


def test_generation_with_a_cache_equals_without_and_encodes_once():
    model = small_model()
    inputs = _inputs(model, MIXED)
    calls = []
    handle = model.visual.register_forward_hook(lambda *_: calls.append(1))
    cached = _generate(model, inputs)
    assert len(calls) == 1
    assert torch.equal(cached, _generate(model, inputs, use_cache=False))
    assert len(calls) == 7
    handle.remove()
    ids = inputs["input_ids"]
    for _ in range(6):  # the same by hand
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids}).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, ids)


def test_generation_of_a_left_padded_batch_equals_one_by_one():
    model = small_model()
    alone = [_inputs(model, [[1, 2, 4]], seed=1), _inputs(model, [[5, 2, 2]], seed=2)]
    longest = max(one["input_ids"].shape[1] for one in alone)
    pads = [longest - one["input_ids"].shape[1] for one in alone]
    ids = torch.stack(
        [torch.nn.functional.pad(one["input_ids"][0], (n, 0)) for n, one in zip(pads, alone, strict=True)]
    )
    together = {
        "input_ids": ids,
        "attention_mask": torch.stack([torch.arange(longest) >= n for n in pads]).long(),
        **{
            name: torch.cat([one[name] for one in alone])
            for name in ("pixel_values", "image_grid_thw", "patch_positions")
        },
    }
    batch = _generate(model, together)
    for i, one in enumerate(alone):
        assert torch.equal(batch[i, longest:], _generate(model, one)[0, -6:])


def test_generation_from_text_alone():
    model = small_model()
    ids = torch.randint(0, 400, (1, 5), generator=torch.Generator().manual_seed(0))
    assert _generate(model, {"input_ids": ids}).shape == (1, 11)


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    model = small_model().train()
    inputs = _inputs(model, MIXED)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    model.gradient_checkpointing_enable()
    assert model.visual.encoder.gradient_checkpointing
    again = gradients()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_loss_counts_labelled_tokens_alone():
    model = small_model()
    inputs = _inputs(model, [[1, 2, 4]])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -3:] = inputs["input_ids"][0, -3:]
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    wanted = torch.nn.functional.cross_entropy(output.logits[0, -4:-1], labels[0, -3:])
    torch.testing.assert_close(output.loss, wanted)
