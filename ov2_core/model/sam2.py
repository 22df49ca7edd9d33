"""SAM 2 as a mask propagator (evals/masks.py), through transformers' own classes.

Enters: the folder of a SAM 2 video checkpoint (config.json, safetensors, processor config), frames, positive points. Leaves: masks.
All points of an object in a frame prompt it together; each object is followed by itself, forwards from its first prompt and
backwards to the first frame. The calls have been run once with random weights (4 frames, 2 objects); no real weights were at hand.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ov2_core.evals.masks import Mask, PointPrompt


class Sam2Propagator:
    """A SAM 2 video model with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model.eval(), processor

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, device: str | torch.device | None = None
    ) -> "Sam2Propagator":
        """A checkpoint's folder; nothing is fetched.

        Raises:
            ValueError: there is no config.json.
        """
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise ValueError(f"{folder}: no config.json; give the local folder of a SAM 2 video checkpoint")
        target = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        model: Any = Sam2VideoModel.from_pretrained(folder, local_files_only=True)
        return cls(model.to(target), Sam2VideoProcessor.from_pretrained(folder, local_files_only=True))

    def propagate(self, frames_THW3: npt.NDArray[np.uint8], prompts: Sequence[PointPrompt]) -> Mapping[int, Mask]:
        """[T, H, W] for each object that is prompted."""
        num_frames, height, width, _ = frames_THW3.shape
        ids = sorted({prompt.object_id for prompt in prompts})
        found = {id_: np.zeros((num_frames, height, width), np.bool_) for id_ in ids}
        if not ids:
            return found
        device = next(self._model.parameters()).device
        session = self._processor.init_video_session(video=list(frames_THW3), inference_device=device)
        with torch.inference_mode():
            for object_id in ids:
                own = [prompt for prompt in prompts if prompt.object_id == object_id]
                self._follow(session, own, found[object_id])
                session.reset_inference_session()
        return found

    def _follow(self, session: Any, prompts: Sequence[PointPrompt], masks_THW: Mask) -> None:
        """Fills in the masks of one object. Each prompted frame is run once before, so that the memory knows all prompts."""
        _, height, width = masks_THW.shape
        frames = sorted({prompt.frame for prompt in prompts})
        for frame in frames:
            points = [[prompt.x_px, prompt.y_px] for prompt in prompts if prompt.frame == frame]
            self._processor.add_inputs_to_inference_session(
                inference_session=session,
                frame_idx=frame,
                obj_ids=prompts[0].object_id,
                input_points=[[points]],
                input_labels=[[[1] * len(points)]],
            )
            self._model(inference_session=session, frame_idx=frame)
        for reverse in (False, True) if frames[0] else (False,):
            for output in self._model.propagate_in_video_iterator(session, start_frame_idx=frames[0], reverse=reverse):
                mask = self._processor.post_process_masks([output.pred_masks], original_sizes=[[height, width]])[0]
                masks_THW[int(output.frame_idx)] = mask.reshape(height, width).bool().cpu().numpy()
