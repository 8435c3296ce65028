"""
The figures of a card, from the log of the day on which it was measured -> assets/h200.json, from
which the pages quote. A log has a paragraph about the machine, then for each command a line
`##### command` and what it printed, with the seconds since its start before each line.

    python tools/card_log.py h200.log
"""
import argparse
import json
import os
import re
import sys
from statistics import median

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.files import ASSETS, atomic_write


def number(pattern, text):
    """The number that a pattern finds in a text"""
    return float(re.search(pattern, text, re.MULTILINE)[1])


def training(text):
    """
    A run of a training script -> {what: figure}. The time of a step is a median without the first
    step, which loads code, and the last one: the original's clock also runs while it evaluates.
    """
    steps = re.findall(r"step +\d+ \| loss: ([\d.]+) .* dt: ([\d.]+)ms", text)
    return {"losses": [float(loss) for loss, _ in steps],
            "step_ms": median(float(ms) for _, ms in steps[1:-1])}


def our_training(text):
    """A run of train_gpt2.py -> {what: figure}"""
    result = training(text)
    tokens, B, T = map(int, re.search(r"(\d+) tokens a step = B (\d+) \* T (\d+)", text).groups())
    shares = [float(share) for share in re.findall(r"mfu ([\d.]+)%", text)]
    last = number(r"^\[ *([\d.]+)\] step +\d+ \| validation", text)
    before = [float(seconds) for seconds in re.findall(r"^\[ *([\d.]+)\] step +\d+ \| loss", text,
                                                       re.MULTILINE)]
    start = number(r"^\[ *([\d.]+)\] .* tokens a step", text)
    return result | {"tokens_a_step": tokens, "B": B, "T": T, "mfu": median(shares[1:-1]),
                     "tokens_per_second": round(1000 * tokens / result["step_ms"]),
                     "seconds_to_step_0": round(before[0] - start, 1),
                     "validation_s": round(last - before[-1], 1),
                     "save_s": number(r"saved .* in ([\d.]+)s", text)}


def micro_step(text):
    """The compiled micro-steps that variants.py compared, and a profile -> {what: figure}"""
    result = {"micro_ms": number(r"V ours: micro ([\d.]+) ms", text),
              "peak_GB": number(r"V ours: .* peak ([\d.]+) GB", text),
              "cached_ready_s": number(r"V ours: .* ready after (\d+) s", text),
              "pieces_step_ms": number(r"V ours, CUDNN: .* step (\d+) ms", text),
              "one_product_step_ms": number(r"V CUDNN, head whole: .* step (\d+) ms", text),
              "one_product_peak_GB": number(r"V CUDNN, head whole: .* peak ([\d.]+) GB", text)}
    first = text.split("P total ")[1].split(" V ")[0]  # the profile of "ours"
    kernels = re.findall(r"% +([\d.]+) ms x +\d+ (.*)", first)
    products = sum(float(ms) for ms, name in kernels if name.startswith("nvjet"))  # cuBLAS's
    attention = sum(float(ms) for ms, name in kernels if "cudnn" in name)
    total = number(r"^([\d.]+) ms", first)  # with the kernels that are too short to be listed
    times = {"kernels_ms": total, "products_ms": products, "attention_ms": attention,
             "other_ms": total - products - attention}
    return result | {name: round(ms, 1) for name, ms in times.items()}


def figures(text):
    """A log -> everything that the pages may quote (dict)"""
    about, *parts = text.split("\n##### ")
    card, version, date = re.search(
        r"One (.*?), PyTorch ([^\s,]+),.* (\d{4}-\d\d-\d\d)\.", about).groups()
    # both training scripts are called train_gpt2.py: ours is in the folder proj
    names = ("python -m pytest", "python proj/train_gpt2.py", "python train_gpt2.py",
             "python variants.py", "python proj/hellaswag.py")
    tests, ours, original, variants, hellaswag = (
        next(part for part in parts if part.startswith(name)) for name in names)
    dots = re.search(r"\] ([.F]+)$", tests, re.MULTILINE)[1]
    return {"card": card, "torch": version, "date": date,
            "tests": {"passed": dots.count("."), "failed": dots.count("F")},
            "ours": our_training(ours), "original": training(original),
            "micro_step": micro_step(variants),
            "hellaswag": {"items": int(number(r"\bn (\d+)$", hellaswag)),
                          "seconds": number(r"\] ([\d.]+)s on ", hellaswag)}}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log")
    with open(parser.parse_args(argv).log, encoding="utf-8") as f:
        result = figures(f.read())
    name = f"{result['card'].split()[-1].lower()}.json"  # NVIDIA H200 -> h200.json
    with atomic_write(os.path.join(ASSETS, name), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main(sys.argv[1:])
