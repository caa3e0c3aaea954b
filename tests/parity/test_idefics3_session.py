"""Whole conversations with SmolVLM2 and Idefics3: folder, template, files in; the published prompt and logits out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from fluvial.adapters.errors import MediaError, UnsupportedError, UsageError
from fluvial.encoders.frame import Frame
from fluvial.encoders.video import open_video
from fluvial.engine.media import Image, Video
from fluvial.engine.model import load_model
from fluvial.engine.session import Session
from fluvial.engine.snapshot import Snapshot
from fluvial.engine.template import ChatTemplate, Text
from fluvial.engine.turns import as_history
from tests.engine import small_tokenizers
from tests.media.media_files import write_video
from tests.parity.reference import TOLERANCE, error, perturbed
from tests.parity.test_idefics3 import PROCESSOR, SAMPLING, TEXT, VISION, picture, words_of_a_picture, words_of_a_video

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
CONTROLS += ["<global-img>", *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2))]  # others are plain text
WORDS = ["User: You are provided the following series of frames.\n\nFrame from 00:\n\nWhat is it? \n\nAssistant: what"]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's way of cutting words, as SmolVLM has it: what stands beside a word decides how it is cut."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": CONTROLS, "show_progress": False}
    made.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=340, min_frequency=2, **options))
    return made


def template() -> str:
    """As published: with a place for images only."""
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    bare: str = DEFAULT_CHAT_TEMPLATE.replace("{% elif line['type'] == 'video' %}{{ '<video>' }}", "")
    assert "video" not in bare
    return bare


class Made:
    """The reference, the same folder loaded, and the library's own tokenizer."""

    def __init__(self, kind: str, folder: Path, **options: Any) -> None:
        import transformers

        self.tokenizer, name = byte_level(), {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
        small_tokenizers.save(folder, self.tokenizer, eos_token="<end_of_utterance>", chat_template=template())
        text = {**TEXT, "vocab_size": self.tokenizer.get_vocab_size()}
        config = getattr(transformers, f"{name}Config")(
            text_config=text, vision_config=VISION, image_token_id=self.tokenizer.token_to_id("<image>")
        )
        torch.manual_seed(9)
        self.reference: Any = perturbed(getattr(transformers, f"{name}ForConditionalGeneration")(config))
        self.reference.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | SAMPLING | options))
        self.folder, self.model = folder, load_model(folder)
        self.tiling, self.size = self.model.tower.config.tiling, self.model.tower.tokens(False)

    def logits(self, prompt: str, squares: list[Tensor]) -> tuple[int, Tensor]:
        """How many tokens the published prompt has, and the reference's logits after the last of them."""
        ids = torch.tensor([self.tokenizer.encode(prompt).ids])
        pixels = {"pixel_values": torch.cat(squares)[None]} if squares else {}
        with torch.no_grad():
            return ids.shape[1], self.reference(ids, **pixels).logits[0, -1]

    def check(self, name: str, session: Session, prompt: str, squares: list[Tensor]) -> None:
        count, wanted = self.logits(prompt, squares)
        assert session.position == count
        off = error(session._now.feed.logits, wanted)
        print(f"parity  {name:32} {off:.1e}")
        assert off <= TOLERANCE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made("smolvlm", tmp_path_factory.mktemp("chat") / "smolvlm")


def rendered(messages: list[dict[str, Any]], shown: list[str]) -> str:
    """The published template with these words for its media, without the end of the last message."""
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    text = jinja2.Template(DEFAULT_CHAT_TEMPLATE).render(messages=messages)
    for words in shown:
        at = min(at for name in ("<image>", "<video>") if (at := text.find(name)) >= 0)
        end = text.index(">", at) + 1
        text = text[:at] + words.replace("<image>", "\0") + text[end:]
    return text.replace("\0", "<image>").removesuffix("\n").removesuffix("<end_of_utterance>")


def content(*parts: str) -> list[dict[str, str]]:
    return [{"type": part} if part in ("image", "video") else {"type": "text", "text": part} for part in parts]


def test_a_conversation(made, tmp_path):
    """A video first, whose words are cut as one with those around them; then an image, which changes how a turn
    begins; answers in between, and a session that was saved between a video and the words behind it."""
    pictures = [picture(80, 96, i).rgb for i in range(48)]
    clip, image = write_video(tmp_path / "clip.mp4", pictures, fps=12), picture(270, 400, 9)
    session = Session(made.model)
    session.push(Video(clip))
    session.save(tmp_path / "talk.session")
    session = Session.load(made.model, tmp_path / "talk.session")
    list(session.ask("What is it?", max_tokens=5))
    session.push(Image(image.rgb))
    list(session.ask("what", max_tokens=3))
    session.push("You")

    with open_video(clip) as reader:
        frames = list(reader)
    seen = [frames[i] for i in (0, 15, 31, 47)]  # 4 seconds: one frame for each, the first and the last among them
    watching = made.model.tower.config.watching
    squares = [*(watching.tiling.squares(frame.rgb) for frame in seen), made.tiling.squares(image.rgb)]
    words = [
        words_of_a_video([index / 12 for index in (0, 15, 31, 47)], 4.0, made.size),
        words_of_a_picture(*made.tiling.grid(270, 400), made.size),
    ]
    assert "four frames from a 0:00:04" in words[0] and "Frame from 00:02:" in words[0]
    replies = [m["content"] for m in session.messages if m["role"] == "assistant"]
    messages = [
        {"role": "user", "content": content("video", "What is it?")},
        {"role": "assistant", "content": content(replies[0])},
        {"role": "user", "content": content("image", "what")},
        {"role": "assistant", "content": content(replies[1])},
        {"role": "user", "content": content("You\n")},
    ]
    made.check("smolvlm conversation", session, rendered(messages, words), squares)


def test_a_space_that_the_template_writes_itself():
    """The prompt ends at "Assistant:", the model says " Yes", and a finished turn shows "Assistant: Yes": the same."""
    template_ = ChatTemplate(template(), media={"image": "<image>"})
    fed = Text("<|im_start|>User: Hi<end_of_utterance>\nAssistant: Yes")
    messages = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yes"})
    now = Snapshot(feed=None, messages=messages, fed=(fed,))
    kept = as_history(now, now, template_)
    assert kept.fed == (fed,) and kept.messages[-1]["content"] == "Yes"


def test_a_video_between_words(made, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [picture(48, 64, i).rgb for i in range(60)], fps=10)
    session = Session(made.model)
    session.push("what")
    session.push(Video(clip, frames=3))
    session.push("You")
    with open_video(clip) as reader:
        frames = [frame for frame in reader if frame.index in (10, 30, 50)]  # long: not its ends
    watching = made.model.tower.config.watching
    words = words_of_a_video([1.0, 3.0, 5.0], 6.0, made.size)
    messages = [{"role": "user", "content": content("what\n", "video", "You\n")}]
    squares = [watching.tiling.squares(frame.rgb) for frame in frames]
    made.check("smolvlm video between words", session, rendered(messages, [words]), squares)
    before = session.snapshot()
    for wrong in (Video(clip, fps=-1.0), Video(clip, max_frames=0)):
        with pytest.raises(UsageError, match="positive"):
            session.push(wrong)
    with pytest.raises(MediaError):
        session.push(Video(tmp_path / "none.mp4"))
    assert session.snapshot() is before


def test_live_frames(made):
    """No sentence before them: nobody knows how many there will be."""
    frames = [Frame(picture(48, 64, i).rgb, t) for i, t in enumerate((0.0, 61.5))]
    session = Session(made.model)
    for frame in frames:
        session.push(frame)
    session.push("what")
    square = "<fake_token_around_image><global-img>" + "<image>" * made.size + "<fake_token_around_image>"
    messages = [{"role": "user", "content": content("video", "video", "what\n")}]
    words = [f"\nFrame from {time}:{square}" for time in ("00:00", "01:01")]
    tiling = made.model.tower.config.watching.tiling
    made.check("smolvlm live", session, rendered(messages, words), [tiling.squares(frame.rgb) for frame in frames])


@pytest.mark.parametrize("split", [True, False])
def test_idefics3_sees_pictures(tmp_path, split):
    made = Made("idefics3", tmp_path / "idefics3", do_image_splitting=split)
    shots = [picture(33, 31, 1), picture(60, 300, 2)]
    session = Session(made.model)
    for shot in shots:
        session.push(Image(shot.rgb))
    session.push("what")
    words = [
        words_of_a_picture(*(made.tiling.grid(shot.height, shot.width) if split else (0, 0)), made.size)
        for shot in shots
    ]
    messages = [{"role": "user", "content": content("image", "image", "what\n")}]
    squares = [made.tiling.squares(shot.rgb) for shot in shots]
    made.check(f"idefics3 {'cut' if split else 'whole'} pictures", session, rendered(messages, words), squares)
    before, clip = session.snapshot(), write_video(tmp_path / "clip.mp4", [shots[0].rgb[:32, :30]] * 3)
    with pytest.raises(UnsupportedError, match="no videos"):
        session.push(Video(clip))
    assert session.snapshot() is before and made.model.explain()["media"] == ["image"]
