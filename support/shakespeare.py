"""
The speeches in input.txt as the items of a task, so that the first command works without a file of
one's own. Come here to see what --demo learns from.

    classify  which of the nine plays is a speech from?
    embed     a speech and the one that answers it
    choose    four speeches: which one answers?

The names of the speakers are left out: Romeo's would give the play away.
"""
import os
import random

from support.console import UserError

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "input.txt")
# the first words of each play; the file itself does not say where one begins
PLAYS = {
    "Coriolanus": "Before we proceed any further, hear me speak.",
    "Richard III": "Now is the winter of our discontent",
    "Richard II": "Old John of Gaunt, time-honoured Lancaster,",
    "Romeo and Juliet": "Gregory, o' my word, we'll not carry coals.",
    "Henry VI, part 3": "I wonder how the king escap'd our hands.",
    "The Winter's Tale": "If you shall chance, Camillo, to visit Bohemia,",
    "Measure for Measure": "Escalus,-",
    "The Taming of the Shrew": "I'll pheeze you, in faith.",
    "The Tempest": "Boatswain!",
}


def read_speeches(path=PATH):
    """-> list of (play, speech): texts, in the order of the file"""
    if not os.path.isfile(path):
        raise UserError(f"there is no {path}, the text of --demo: give a file with --train")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    speeches = []
    openings = list(PLAYS.items())
    play = ""
    for paragraph in text.split("\n\n"):
        _, _, speech = paragraph.strip().partition("\n")  # the first line names the speaker
        if openings and speech.startswith(openings[0][1]):
            play = openings.pop(0)[0]
        if speech.strip():
            speeches.append((play, speech))
    if openings:
        raise UserError(f"{path} is not the text that came along: {openings[0][0]} is not in it")
    return speeches


def demo_entries(task, path=PATH):
    """The speeches as the lines of a file for classify, embed or choose -> list of dicts"""
    speeches = read_speeches(path)
    # each speech and the next one, as long as the play goes on
    pairs = [(first, second) for (play, first), (next_play, second)
             in zip(speeches, speeches[1:], strict=False) if play == next_play]
    if task == "classify":
        return [{"text": speech, "label": play} for play, speech in speeches]
    if task == "embed":
        return [{"query": first, "passage": second} for first, second in pairs]
    if task == "choose":
        return choices(pairs)
    raise UserError(f"--demo has no items for {task}: it is for classify, embed and choose")


def choices(pairs):
    """Each second speech among three others, in some order -> list of dicts"""
    draw = random.Random(0)
    entries = []
    for first, second in pairs:
        endings = [draw.choice(pairs)[1] for _ in range(3)]
        label = draw.randrange(4)
        endings.insert(label, second)
        entries.append({"ctx": first, "endings": endings, "label": label})
    return entries
