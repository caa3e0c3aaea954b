"""Small talk: short chats of one to four turns with one fixed answer per intent, so that a tiny model can learn it."""

from __future__ import annotations

import numpy as np

from .scene import QA

CHAT: dict[str, tuple[tuple[str, ...], str]] = {
    "hello": (
        ("Hello", "Hello!", "Hi", "Hi there", "Hey", "Good morning", "Good evening!", "hello pebble"),
        "Hello! Show me a picture or a video, or tell me something to remember.",
    ),
    "who": (
        ("Who are you?", "What are you?", "What is your name?", "who is this", "Tell me who you are.", "Your name?"),
        "I am Pebble, a very small model that sees pictures and videos and remembers text.",
    ),
    "can": (
        ("What can you do?", "How can you help me?", "What are you good at?", "Help", "what can i ask you",
         "What do you know?"),
        "I can name shapes and colours, count them, say where they are, read numbers and words, follow what moves in "
        "a video, and remember what you tell me.",
    ),
    "how": (
        ("How are you?", "How are you doing?", "how is it going", "How do you feel?", "Are you well?", "You okay?"),
        "I am fine, thank you.",
    ),
    "thanks": (
        ("Thanks", "Thank you!", "Thanks a lot", "thank you very much", "Great, thanks.", "thx"),
        "You are welcome.",
    ),
    "good": (
        ("Well done", "Good job!", "That is right.", "Nice", "Very good!", "correct"),
        "Thank you!",
    ),
    "wrong": (
        ("That is wrong.", "No, that is not right.", "You made a mistake.", "wrong", "Not correct.", "I disagree."),
        "I am sorry. I am small and sometimes wrong.",
    ),
    "unknown": (
        ("Write a novel.", "Who won the election?", "What is the capital of France?", "Tell me a joke.",
         "What is the weather like?", "Translate this book.", "Solve this equation."),
        "I do not know that. I am a very small model.",
    ),
    "bye": (
        ("Bye", "Goodbye!", "See you", "see you later", "Good night", "That is all, bye."),
        "Goodbye!",
    ),
}  # fmt: skip
MIDDLE = tuple(k for k in CHAT if k not in ("hello", "bye"))


def chat_sample(rng: np.random.Generator) -> list[QA]:
    """1 to 4 turns, a greeting first and a farewell last where there is one; task 'chat'."""
    intents = [MIDDLE[i] for i in rng.permutation(len(MIDDLE))[: int(rng.integers(0, 3))]]
    if not intents or rng.random() < 0.4:
        intents.insert(0, "hello")
    if rng.random() < 0.3:
        intents.append("bye")
    turns = []
    for intent in intents:
        ways, answer = CHAT[intent]
        said = ways[rng.integers(len(ways))]
        turns.append(QA("chat", said.lower() if rng.random() < 0.2 else said, answer))
    return turns
