"""
The table of docs/finetuning.md: each task from a pretrained model and from random weights, several
seeds. Each result becomes a line of a file at once, and what is in the file is not run again: stop
this and start it as often as you like.

    python tools/finetune_table.py run MODEL DATA RESULTS
    python tools/finetune_table.py table RESULTS

DATA is a directory with sst2_val.jsonl, rte_val.jsonl, mrpc_val.jsonl, hellaswag_val_300.jsonl,
wiki_pairs.jsonl, and wiki_docs.jsonl, the text that MODEL was pretrained on. These are validation
sets, the only parts at hand: four fifths of each are learned from, one fifth is measured on. So the
figures compare two runs with each other, and nothing with a published one.
"""
import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import finetune
from support import metrics
from support.runlog import read_log

# the file of each task, the folds that are measured, the flags. A model of 10M parameters wants a
# higher rate than GPT-1's 6.25e-5
RATE = "--max_lr=3e-4"
RUNS = {
    "embed": ("wiki_pairs.jsonl", 1, [RATE, "--epochs=1"]),
    "classify": ("sst2_val.jsonl", 5, [RATE]),
    "entail": ("rte_val.jsonl", 1, [RATE]),
    "compare": ("mrpc_val.jsonl", 1, [RATE]),
    "choose": ("hellaswag_val_300.jsonl", 1, [RATE]),
}
SEEDS = (1, 2, 3)
NUM_PAIRS = 1440  # of wiki_pairs: 1,152 to learn from, 288 to measure on


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def plain(text):
    """Without the differences in white space that two ways to cut a text make."""
    return " ".join(text.split())


def read_data(task, folder):
    """The items of a task -> list of dicts, in an order that has nothing to do with the file's"""
    items = read_lines(os.path.join(folder, RUNS[task][0]))
    random.Random(0).shuffle(items)
    if task == "embed":
        # a passage that pretraining has read would be known by heart, perhaps
        docs = [entry["text"] for entry in read_lines(os.path.join(folder, "wiki_docs.jsonl"))]
        seen = plain(" ".join(docs))
        unseen = [item for item in items if plain(item["passage"]) not in seen]
        print(f"{len(items) - len(unseen)} of {len(items)} pairs are left out: pretraining has "
              "read their passage")
        items = unseen[:NUM_PAIRS]
    return items


def write_lines(path, items):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(item) + "\n" for item in items)
    return path


def measure_search(out, val):
    """The pairs whose passage lacks the title apart, and what BM25 finds -> {name: value}"""
    model, tokenizer, _ = finetune.load_tuned(out)
    process = finetune.setup_distributed(finetune.TrainConfig(device="cpu"))
    queries, passages = [item["query"] for item in val], [item["passage"] for item in val]
    vectors = finetune.embed_texts(model, tokenizer, queries + passages, process)
    ours = vectors[: len(val)] @ vectors[len(val) :].T
    words = metrics.bm25(queries, passages)
    lacks = [item["query"].lower() not in item["passage"].lower() for item in val]
    found = {"pairs": len(val), "pairs without title": sum(lacks)}
    for name, similarities in (("", ours), ("BM25 ", words)):
        ranks = metrics.own_ranks(similarities, queries, passages)
        for kind, some in (("", ranks), (" without title", ranks[lacks])):
            quality = metrics.search_quality(some)
            found |= {f"{name}{metric}{kind}": value for metric, value in quality.items()}
    return found


def run_once(task, start, seed, fold, items, model):
    """Tune once -> what was reached (dict). start: pretrained or random"""
    size = len(items) // 5
    val = items[fold * size : (fold + 1) * size]
    train = items[: fold * size] + items[(fold + 1) * size :]
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "tuned")
        flags = [*RUNS[task][2], f"--seed={seed}", f"--model={model}", f"--log_dir={out}",
                 f"--train={write_lines(os.path.join(folder, 'train.jsonl'), train)}",
                 f"--val={write_lines(os.path.join(folder, 'val.jsonl'), val)}"]
        if start == "random":
            flags.append("--random_weights")
        finetune.run([task, *flags])
        log, _ = read_log(out)
        found = {name: values[max(values)] for name, values in log.items()
                 if name in ("accuracy", "f1", "val", "spearman")}
        if task == "embed":
            found |= measure_search(out, val)
    if task in ("classify", "entail", "compare"):
        labels = [item["label"] for item in val]
        found["majority"] = max(labels.count(label) for label in set(labels)) / len(labels)
    return found


def run(model, data, results):
    """Do what is not in the file of results yet."""
    done = read_lines(results) if os.path.exists(results) else []
    keys = {(r["task"], r["start"], r["seed"], r["fold"]) for r in done}
    for seed, (task, (_, folds, _)) in itertools.product(SEEDS, RUNS.items()):
        items = read_data(task, data)
        for fold, start in itertools.product(range(folds), ("pretrained", "random")):
            if (task, start, seed, fold) in keys:
                continue
            found = run_once(task, start, seed, fold, items, model)
            result = {"task": task, "start": start, "seed": seed, "fold": fold, **found}
            with open(results, "a", encoding="utf-8") as f:
                f.write(json.dumps(result) + "\n")


def rows(results, metric, task, name):
    """
    A line of the table for each start -> list of texts. Folds are averaged first, since they are
    parts of one measurement; the spread is that of the seeds.
    """
    lines = []
    for start in ("pretrained", "random"):
        mine = [r for r in results if r["task"] == task and r["start"] == start and metric in r]
        means = [statistics.mean(r[metric] for r in mine if r["seed"] == seed)
                 for seed in sorted({r["seed"] for r in mine})]
        if means:
            spread = f" ({min(means):.3f} to {max(means):.3f})" if len(means) > 1 else ""
            lines.append(f"| {name} | {start} | {statistics.mean(means):.3f}{spread} | "
                         f"{len(means)} | {len(mine)} |")
    return lines


def constant(results, metric, task, name, what):
    """The line of something that does not depend on our model: BM25, the most frequent label."""
    folds = {r["fold"]: r[metric] for r in results if r["task"] == task and metric in r}
    if not folds:
        return []
    return [f"| {name} | {what} | {statistics.mean(folds.values()):.3f} | | |"]


def table(results):
    """Results (list of dicts) -> the table, as text"""
    lines = ["| task and measure | from | mean (lowest to highest seed) | seeds | runs |",
             "|---|---|---|---|---|"]
    names = {"classify": "classify, SST-2: accuracy", "entail": "entail, RTE: accuracy",
             "compare": "compare, MRPC: accuracy", "choose": "choose, HellaSwag: accuracy"}
    for task, name in names.items():
        lines += rows(results, "accuracy", task, name)
        lines += constant(results, "majority", task, name, "the most frequent label")
    for metric in ("recall@1", "recall@10", "mrr", "recall@10 without title"):
        name = f"embed, titles to passages: {metric}"
        lines += rows(results, metric, "embed", name)
        lines += constant(results, f"BM25 {metric}", "embed", name, "BM25")
    return "\n".join(lines)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    for name in ("model", "data", "results"):
        runs.add_argument(name)
    commands.add_parser("table").add_argument("results")
    args = parser.parse_args(argv)
    if args.command == "run":
        run(args.model, args.data, args.results)
    else:
        print(table(read_lines(args.results)))


if __name__ == "__main__":
    main(sys.argv[1:])
