"""Makes the picture and the clip of the demo from the procedural world, with seeds that no training step uses.

python -m examples.media.make
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from examples.pebble.world import image_sample, video_sample

HERE = Path(__file__).parent


def main() -> None:
    scene = image_sample(np.random.default_rng([77, 9, 1]), 0.6, 6, size=384, tasks=["describe"])
    assert scene.image is not None
    Image.fromarray(scene.image).save(HERE / "shapes.jpg", quality=88)
    print("shapes.jpg:", scene.qa[0].answer)
    clip = video_sample(np.random.default_rng([77, 9, 2]), 0.4, 3, size=256, frames=8, tasks=["moving", "direction"])
    assert clip.frames is not None
    writer = cv2.VideoWriter(str(HERE / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 2.0, (256, 256))
    for frame in clip.frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    print("clip.mp4:", [(qa.question, qa.answer) for qa in clip.qa])


if __name__ == "__main__":
    main()
