"""The SAM 2 adapter against stand-ins that take transformers' calls: what is prompted, in which order, and where masks land."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ov2_core.evals.masks import PointPrompt
from ov2_core.model.sam2 import Sam2Propagator


class Session:
    """What init_video_session returns."""

    def __init__(self, num_frames):
        self.num_frames, self.points = num_frames, {}

    def reset_inference_session(self):
        self.points = {}


class Processor:
    def __init__(self):
        self.calls = []

    def init_video_session(self, *, video, inference_device):
        assert all(frame.dtype == np.uint8 for frame in video)
        return Session(len(video))

    def add_inputs_to_inference_session(self, *, inference_session, frame_idx, obj_ids, input_points, input_labels):
        assert np.shape(input_points)[:2] == np.shape(input_labels)[:2] == (1, 1)
        assert set(np.ravel(input_labels)) == {1}
        self.calls.append((obj_ids, frame_idx, input_points[0][0]))
        inference_session.points[frame_idx] = obj_ids

    def post_process_masks(self, masks, original_sizes):
        [mask], [(height, width)] = masks, original_sizes
        return [mask.expand(1, 1, height, width) > 0]


class Model(torch.nn.Module):
    """Says "object" where the object's number is odd; refuses to propagate what was not run at each prompt."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.run, self.spans = set(), []

    def forward(self, inference_session, frame_idx):
        self.run.add((inference_session.points[frame_idx], frame_idx))

    def propagate_in_video_iterator(self, session, *, start_frame_idx, reverse):
        assert all((object_id, frame) in self.run for frame, object_id in session.points.items())
        [object_id] = set(session.points.values())
        self.spans.append((object_id, start_frame_idx, reverse))
        frames = range(start_frame_idx, -1, -1) if reverse else range(start_frame_idx, session.num_frames)
        for frame in frames:
            yield SimpleNamespace(frame_idx=frame, pred_masks=torch.full((1, 1, 1, 1), float(object_id % 2) - 0.5))


def test_each_object_is_prompted_alone_and_followed_both_ways():
    model, processor = Model(), Processor()
    prompts = [
        PointPrompt(frame=1, object_id=3, x_px=5.0, y_px=6.0),
        PointPrompt(frame=1, object_id=3, x_px=7.0, y_px=8.0),
        PointPrompt(frame=2, object_id=3, x_px=1.0, y_px=2.0),
        PointPrompt(frame=0, object_id=4, x_px=9.0, y_px=9.0),
    ]
    frames = np.zeros((4, 10, 12, 3), np.uint8)
    found = Sam2Propagator(model, processor).propagate(frames, prompts)
    assert processor.calls == [(3, 1, [[5.0, 6.0], [7.0, 8.0]]), (3, 2, [[1.0, 2.0]]), (4, 0, [[9.0, 9.0]])]
    assert model.spans == [(3, 1, False), (3, 1, True), (4, 0, False)]
    assert {id_: (mask.shape, mask.dtype, mask.mean()) for id_, mask in found.items()} == {
        3: ((4, 10, 12), np.bool_, 1.0),
        4: ((4, 10, 12), np.bool_, 0.0),
    }
    assert Sam2Propagator(model, processor).propagate(frames, []) == {}


def test_a_folder_without_a_config_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=r"no config\.json"):
        Sam2Propagator.from_pretrained(tmp_path)
