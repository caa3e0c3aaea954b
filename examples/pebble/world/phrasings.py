"""Every way a question is put. The answer never depends on the phrasing.

Now and then a question is typed the way people type in a chat: lower case, no question mark, a word of greeting.
"""

from __future__ import annotations

import numpy as np

PHRASINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {thing}?", "What color is the {thing}?", "Which colour does the {thing} have?",
        "The {thing}: what colour is it?", "Tell me the colour of the {thing}.", "Name the color of the {thing}.",
        "What is the {thing}'s colour?", "In which colour is the {thing} painted?",
    ),
    "shape": (
        "What shape is the {colour} object?", "Which shape is {colour}?", "What is the {colour} thing?",
        "Name the shape of the {colour} object.", "Which shape does the {colour} object have?",
        "Tell me what shape the {colour} one is.", "What kind of shape is {colour}?",
    ),
    "count": (
        "How many shapes are there?", "How many objects do you see?", "Count the shapes.", "Count the objects.",
        "What is the number of shapes?", "How many shapes are in the picture?", "How many shapes can be seen in all?",
        "Tell me how many objects there are.",
    ),
    "count_by": (
        "How many {things} are there?", "How many {things} do you see?", "Count the {things}.",
        "What is the number of {things}?", "How many {things} are in the picture?", "How many {things} can you find?",
        "Tell me how many {things} there are.",
    ),
    "exists": (
        "Is there {thing}?", "Do you see {thing}?", "Can you see {thing}?", "Is there {thing} in the picture?",
        "Does the picture show {thing}?", "Can {thing} be seen?", "Yes or no: is there {thing}?",
    ),
    "position": (
        "Where is the {thing}?", "Where do you see the {thing}?", "In which part of the picture is the {thing}?",
        "What is the position of the {thing}?", "Locate the {thing}.", "Where can I find the {thing}?",
        "Tell me where the {thing} is.",
    ),
    "describe": (
        "Describe the picture.", "What do you see?", "What is in the picture?", "List all the shapes.",
        "Describe what you see.", "What does the picture show?", "Name every object in the picture.",
    ),
    "number": (
        "What number is shown?", "Which number do you see?", "Read the number.", "What number is in the picture?",
        "What is the number printed here?", "Tell me the number.", "Which number is written there?",
    ),
    "word": (
        "What word is shown?", "Which word do you see?", "Read the word.", "What does the text say?",
        "What letters are printed?", "What is written here?", "Read the text in the picture.",
    ),
    "size": (
        "Which shape is the largest?", "Which shape is the biggest?", "What is the largest shape?",
        "Name the biggest shape.", "What shape is the biggest object?", "Tell me which shape is the largest.",
    ),
    "first": (
        "Which object appears first?", "What appears first?", "What comes first?", "Which shape is seen first?",
        "Name the first object to appear.", "What is the first object in the video?", "Which object shows up first?",
    ),
    "last": (
        "Which object appears last?", "What appears last?", "What comes last?", "Which shape shows up last of all?",
        "Name the last object to appear.", "What is the last object to show up?", "Which object is the last to come?",
    ),
    "moving": (
        "Which object moves?", "What is moving?", "Which shape moves?", "What moves in the video?",
        "Name the object that moves.", "Which object does not stand still?", "Tell me what moves.",
    ),
    "direction": (
        "In which direction does it move?", "Which way does the object move?", "Where does it move to?",
        "What is the direction of the motion?", "Which direction does the moving object take?",
        "Tell me which way it goes.", "Does it move left, right, up or down?",
    ),
    "flash_code": (
        "What code was shown?", "Which code flashed up?", "What was the code?", "Read the code that was shown.",
        "Which digits were shown?", "Tell me the code in the video.", "What code appeared for a moment?",
    ),
    "video_count": (
        "How many objects appeared in total?", "How many objects were there in all?", "Count all objects in the video.",
        "How many different objects were shown?", "How many shapes appeared in the video?",
        "What is the total number of objects?", "How many objects did you see altogether?",
    ),
    "recall": (
        "What is {key}?", "What is the value of {key}?", "Which value does {key} have?", "Tell me the value of {key}.",
        "{key}=", "Look up {key}.", "What was {key} set to?", "Recall {key}.",
    ),
    "passkey": (
        "What is the pass key?", "Which pass key was given?", "Tell me the pass key.", "What was the pass key?",
        "Recall the pass key.", "Give me the pass key from the text.", "Repeat the pass key.",
    ),
    "copy": (
        "Repeat exactly: {text}", "Repeat this: {text}", "Copy: {text}", "Say the following: {text}",
        "Write exactly this: {text}", "Echo: {text}", "Copy the text after the colon: {text}",
    ),
}  # fmt: skip
OPENERS = ("hey, ", "please: ", "ok, ", "hi! ", "so ", "and ", "quick question: ")


def ask(rng: np.random.Generator, task: str, **slots: str) -> str:
    """One phrasing of the task's question with its slots filled; about one in six as in a chat."""
    choices = PHRASINGS[task]
    text = choices[rng.integers(len(choices))]
    if rng.random() < 0.17 and "=" not in text:
        if task != "copy" and rng.random() < 0.7:
            text = text.rstrip("?.")
        text = text[0].lower() + text[1:] if text[0] != "{" else text
        if rng.random() < 0.4:
            text = OPENERS[rng.integers(len(OPENERS))] + text
    return text.format(**slots)
