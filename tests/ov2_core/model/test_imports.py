"""torch is imported when a command needs it: the command line and the tokenization path start without it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["jobs.cli", "jobs.bench_encoder", "pipelines.tokenize_videos", "ov2_core.tokenize_video"]
)
def test_module_is_imported_without_torch(module):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None  # an import of it raises\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_model_is_registered_with_auto_classes():
    pytest.importorskip("torch", reason="the model needs torch")
    transformers = pytest.importorskip("transformers", reason="the model needs transformers")

    from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration, LlavaOnevision2Model

    config = transformers.AutoConfig.for_model("llava_onevision2")
    assert type(config) is LlavaOnevision2Config
    assert transformers.AutoModel._model_mapping[LlavaOnevision2Config] is LlavaOnevision2Model
    mapping = transformers.AutoModelForImageTextToText._model_mapping
    assert mapping[LlavaOnevision2Config] is LlavaOnevision2ForConditionalGeneration
