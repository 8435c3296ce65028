"""
The speeches in input.txt as the items of a fine-tuning task, so that you can try one without a file
of your own. Come here to see what --demo learns from.

    classify  which of the nine plays is this speech from?
    embed     which speech answers this one?
    choose    the same question, with four speeches to choose from

The names of the speakers are left out: Romeo's would give the play away.
"""
import os
import random

from support.console import UserError

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "input.txt")
# the first words of each play, because input.txt does not say where one begins
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
    """-> list of (play, speech), both str, in the order of the file"""
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
        raise UserError(f"{path} is not the text of --demo, it lacks {openings[0][0]}: "
                        "git checkout input.txt")
    return speeches


def demo_entries(task, path=PATH):
    """The speeches as items for classify, embed or choose -> list of dicts, as in a task's file"""
    speeches = read_speeches(path)
    # each speech with the next one of the same play
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
    """pairs of speeches -> for each one, the answer among three random speeches (list of dicts)"""
    draw = random.Random(0)
    entries = []
    for first, second in pairs:
        endings = [draw.choice(pairs)[1] for _ in range(3)]
        label = draw.randrange(4)
        endings.insert(label, second)
        entries.append({"ctx": first, "endings": endings, "label": label})
    return entries
