"""Checkpoint folders: strict loading that names what is wrong, shards, the standalone encoder both ways, merging, description."""

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

from model_inputs import codec_positions, pixels_for, prompt_for, small_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import Qwen3ForCausalLM  # noqa: E402

from ov2_core.model import LlavaOnevision2ForConditionalGeneration  # noqa: E402
from ov2_core.model.describe import describe_checkpoint  # noqa: E402
from ov2_core.model.merge import merge_checkpoints  # noqa: E402
from ov2_core.model.tensor_files import read_entries  # noqa: E402
from ov2_core.model.weights import (  # noqa: E402
    fuse_encoder,
    load_encoder,
    load_model,
    load_weights,
    save_weights,
    split_encoder,
)

ENCODER = "model.visual."


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def folder(model, tmp_path):
    save_weights(model, tmp_path / "model")
    model.config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _standalone(model, root, *, prefix=""):
    """As the Hub keeps it: q, k, v apart, a head, no connector."""
    state = {name: tensor for name, tensor in model.visual.state_dict().items() if not name.startswith("merger.")}
    apart = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for i, x in enumerate("qkv"):
                apart[name.replace("qkv", f"{x}_proj")] = tensor[i * 64 : (i + 1) * 64].clone()
        else:
            apart[name.replace("self_attn.proj", "self_attn.out_proj")] = tensor
    apart |= {
        "layernorm_post.weight": torch.ones(64),
        "layernorm_post.bias": torch.ones(64),
        "head.probe": torch.ones(1, 1, 64),
    }
    root.mkdir()
    save_file({prefix + name: tensor.contiguous() for name, tensor in apart.items()}, root / "model.safetensors")
    fields = model.config.vision_config.to_dict()
    del fields["out_hidden_size"]
    (root / "config.json").write_text(json.dumps({**fields, "use_head": True, "auto_map": {"AutoModel": "x.Y"}}))
    return root


def _llm(model, root, *, seed=7):
    torch.manual_seed(seed)
    qwen = Qwen3ForCausalLM(model.config.text_config)
    qwen.save_pretrained(root)
    (root / "tokenizer.json").write_text("{}")
    return qwen.eval()


def _edit(folder, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def _same(ours, theirs):
    assert list(sorted(ours)) == list(sorted(theirs))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_saved_folder_loads_identically_here_and_in_transformers(model, tmp_path, shard_bytes):
    written = save_weights(model, tmp_path, shard_bytes=shard_bytes)
    model.config.save_pretrained(tmp_path)
    assert all(file.exists() for file in written)
    assert (len(written) > 1) == (shard_bytes == 60_000)
    _same(model.state_dict(), load_model(tmp_path).state_dict())
    _same(model.state_dict(), LlavaOnevision2ForConditionalGeneration.from_pretrained(tmp_path).state_dict())
    ids = prompt_for([[1, 1, 1]], model.config.vision_config)[:, :4]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids).logits, model(ids).logits)


def test_folder_that_transformers_saved_in_shards_loads_strictly(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    _same(model.state_dict(), load_model(tmp_path).state_dict())


def test_load_model_converts_to_a_dtype(folder):
    loaded = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert not any(parameter.is_meta for parameter in [*loaded.parameters(), *loaded.buffers()])


def test_missing_extra_and_misshapen_tensors_are_all_named(model, folder):
    def change(state):
        del state["model.visual.merger.mlp.2.bias"]
        state["model.visual.head.probe"] = torch.zeros(1)
        state["lm_head.weight"] = state["lm_head.weight"][:-1].clone()

    _edit(folder, change)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for load in (lambda: load_model(folder), lambda: load_weights(model, folder)):
        with pytest.raises(ValueError, match="does not hold the tensors of this model") as raised:
            load()
        text = str(raised.value)
        assert "missing: model.visual.merger.mlp.2.bias" in text
        assert "extra: model.visual.head.probe" in text
        assert "misshapen: lm_head.weight is [511, 48], must be [512, 48]" in text
        assert text.count("\n") == 3
    _same(before, model.state_dict())
    report = describe_checkpoint(folder)
    assert not report.ok
    assert report.differences.missing == ("model.visual.merger.mlp.2.bias",)
    assert "extra: model.visual.head.probe" in "\n".join(report.lines())


def test_index_that_its_files_contradict_is_refused(model, tmp_path):
    save_weights(model, tmp_path, shard_bytes=60_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["no.such.tensor"] = "model-00001-of-" + next(iter(index["weight_map"].values()))[-17:]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"no\.such\.tensor"):
        read_entries(tmp_path)


def test_missing_shard_is_named(model, tmp_path):
    written = save_weights(model, tmp_path, shard_bytes=60_000)
    written[1].unlink()
    with pytest.raises(ValueError, match=written[1].name):
        read_entries(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin would have to be unpickled"):
        read_entries(tmp_path)


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    (folder / "modeling_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_x.C", "AutoModelForImageTextToText": "modeling_x.M"}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder)
    LlavaOnevision2ForConditionalGeneration.from_pretrained(folder)
    describe_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_config_of_another_model_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ValueError, match="model_type 'llava', must be 'llava_onevision2'"):
        load_model(folder)


def test_fuse_and_split_are_inverse(model):
    state = {k: v for k, v in model.visual.state_dict().items() if not k.startswith("merger.")}
    _same(state, fuse_encoder(split_encoder(model.visual.state_dict())))


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_standalone_encoder_is_fused_and_computes_the_same(model, folder, tmp_path, prefix):
    standalone = load_encoder(_standalone(model, tmp_path / "encoder", prefix=prefix))
    merged = load_encoder(folder)
    assert standalone.merger is None
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    grid, config = [[1, 4, 2], [5, 2, 2]], model.config.vision_config
    inputs = pixels_for(grid, config), codec_positions(grid, 2), [8, 16, 4]
    with torch.no_grad():
        wanted = model.visual.encode(*inputs)
        assert torch.equal(standalone.encode(*inputs), wanted)
        assert torch.equal(merged.encode(*inputs), wanted)
        assert torch.equal(merged(*inputs), model.visual.merge(wanted))


def test_encoder_with_a_wrong_tensor_is_named(model, tmp_path):
    root = _standalone(model, tmp_path / "encoder")
    _edit(
        root,
        lambda state: state.update(
            {"encoder.layers.0.self_attn.k_proj.weight": torch.zeros(3, 64), "odd": torch.zeros(1)}
        ),
    )
    with pytest.raises(ValueError, match=r"extra: odd\n.*k_proj.weight is \[3, 64\], must be \[64, 64\]"):
        load_encoder(root)


def test_merge_makes_a_folder_that_loads_and_computes_as_its_parts(model, tmp_path):
    encoder, qwen = _standalone(model, tmp_path / "encoder"), _llm(model, tmp_path / "llm")
    report = merge_checkpoints(encoder, tmp_path / "llm", tmp_path / "out", dtype=torch.float32, shard_bytes=60_000)
    assert report.ok
    assert report.layout == "merged"
    assert (tmp_path / "out" / "tokenizer.json").exists()
    merged = load_model(tmp_path / "out")
    _same(merged.state_dict(), LlavaOnevision2ForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict())
    ids = torch.randint(0, 400, (1, 9))
    grid = [[5, 2, 2]]
    inputs = pixels_for(grid, model.config.vision_config), codec_positions(grid, 2), [16, 4]
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, qwen(ids).logits)
        assert torch.equal(merged.visual.encode(*inputs), model.visual.encode(*inputs))
    assert merged.visual.merger.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert merged.config.vision_config.use_head is False
    with pytest.raises(ValueError, match="already holds weights"):
        merge_checkpoints(encoder, tmp_path / "llm", tmp_path / "out")


def test_merge_of_a_merged_encoder_keeps_its_connector(model, folder, tmp_path):
    _llm(model, tmp_path / "llm")
    merge_checkpoints(folder, tmp_path / "llm", tmp_path / "out", dtype=torch.float32)
    _same(model.visual.state_dict(), load_model(tmp_path / "out").visual.state_dict())


def test_merge_with_a_tied_language_model_stays_tied(tmp_path):
    model = small_model(tie_word_embeddings=True)
    encoder, qwen = _standalone(model, tmp_path / "encoder"), _llm(model, tmp_path / "llm")
    assert merge_checkpoints(encoder, tmp_path / "llm", tmp_path / "out", dtype=torch.float32).ok
    assert "lm_head.weight" not in read_entries(tmp_path / "out")
    merged = load_model(tmp_path / "out")
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    ids = torch.randint(0, 400, (1, 9))
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, qwen(ids).logits)


def test_merge_of_parts_that_do_not_fit_writes_nothing(model, tmp_path):
    encoder = _standalone(model, tmp_path / "encoder")
    _llm(model, tmp_path / "llm")
    _edit(encoder, lambda state: state.pop("layernorm_pre.bias"))
    with pytest.raises(ValueError, match=r"missing: model\.visual\.layernorm_pre\.bias"):
        merge_checkpoints(encoder, tmp_path / "llm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="holds an encoder alone"):
        merge_checkpoints(encoder, encoder, tmp_path / "out")


def test_description_counts_every_parameter(model, folder, tmp_path):
    report = describe_checkpoint(folder)
    assert report.ok
    assert sum(part.num_parameters for part in report.parts.values()) == sum(p.numel() for p in model.parameters())
    assert report.parts["connector"].num_tensors == 6
    assert report.dtypes == ("float32",)
    encoder = describe_checkpoint(_standalone(model, tmp_path / "encoder"))
    assert encoder.ok
    assert encoder.layout == "encoder"
    assert encoder.parts["encoder (dropped in a merged model)"].num_tensors == 3
    _llm(model, tmp_path / "llm")
    llm = describe_checkpoint(tmp_path / "llm")
    assert llm.ok
    assert llm.layout == "llm"


def test_names_of_the_visual_part_start_as_released(folder):
    assert sum(name.startswith(ENCODER) for name in read_entries(folder)) > 20


def test_saved_weights_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        (path,) = save_weights({"a": torch.zeros(2)}, tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
