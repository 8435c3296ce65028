"""
GPT-2 in Hugging Face's files, config.json and model.safetensors, in and out. Come here when a
directory is refused, or when another program does not read ours. (The tokenizer's files are in
tokenizer.py.)
"""
import json
import os

from support.checkpoints import check_model
from support.console import UserError, one_line
from support.files import atomic_write
from support.settings import SHAPE

# where other values make another model than ours, the config must have these (or not mention them)
SAME = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "n_inner": None, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True}
THEIR_NAMES = {"block_size": "n_positions"}  # the others are called as ours
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, a constant, in some files
FILES = ("config.json", "model.safetensors")


def find_folder(name):
    """
    A directory, or the hub's copy of gpt2 ... gpt2-xl, downloaded -> the path of a directory with
    FILES
    """
    folder = name
    if not os.path.isdir(name):
        from huggingface_hub import snapshot_download
        try:
            folder = snapshot_download(f"openai-community/{name}", allow_patterns=FILES)
        except Exception as e:
            # no network, no such model, no space: its libraries have many ways to say it
            raise UserError(f"cannot load {name}: {one_line(e)}: set HF_ENDPOINT to a mirror, or "
                            "give a directory")
    for file in FILES:
        if not os.path.isfile(os.path.join(folder, file)):
            # never opened: a pickle can run anything
            raise UserError(f"cannot load {name}: it has no {file} (a pytorch_model.bin is "
                            "converted by python -c "
                            f"\"from transformers import GPT2LMHeadModel as M; "
                            f"M.from_pretrained('{name}').save_pretrained('{name}')\")")
    return folder


def read(name):
    """
    A directory, or gpt2 ... gpt2-xl from the hub -> the shape (dict of SHAPE), and the weights by
    the names in the file. Whatever is not a GPT-2 of ours: one line.
    """
    folder = find_folder(name)
    from safetensors.torch import load_file
    broken = f"cannot load {name}: "
    try:
        with open(os.path.join(folder, FILES[0]), encoding="utf-8") as f:
            config = json.load(f)
        weights = load_file(os.path.join(folder, FILES[1]))
    except Exception as e:  # json's and safetensors': no JSON, nested too deeply, a damaged file
        raise UserError(f"{broken}{one_line(e)}")
    if not isinstance(config, dict):
        raise UserError(f"{broken}its config.json is not a dict")
    for key, ours in SAME.items():
        if config.get(key, ours) != ours:
            raise UserError(f"{broken}{key} is {config[key]!r} there and {ours!r} here")
    for key, w in weights.items():
        if w.dim() > 2 and not key.endswith(MASKS):
            raise UserError(f"{broken}{key} has {w.dim()} dimensions, which no weight of GPT-2 has")
    shape = {ours: config.get(THEIR_NAMES.get(ours, ours)) for ours in SHAPE}
    check_model(shape, weights, name)
    return shape, weights


def write(folder, shape, eot, weights, more=None):
    """
    The inverse, with a generation_config.json: transformers loads the folder. more: what another
    model than a language model has in its config (dict). Raises OSError.
    """
    from safetensors.torch import save
    tokens = {"bos_token_id": eot, "eos_token_id": eot}
    theirs = {THEIR_NAMES.get(ours, ours): n for ours, n in shape.items()}
    config = {"architectures": ["GPT2LMHeadModel"], **theirs, **SAME, **tokens, **(more or {})}
    weights = {name: w.detach().contiguous() for name, w in weights.items()}
    generation = {**tokens, "transformers_version": "4.50.0"}
    files = {"model.safetensors": save(weights, {"format": "pt"}),
             "config.json": json.dumps(config).encode(),
             "generation_config.json": json.dumps(generation).encode()}
    os.makedirs(folder, exist_ok=True)
    for file, data in files.items():
        with atomic_write(os.path.join(folder, file)) as f:
            f.write(data)


def write_tuned(folder, config, weights, tokenizer, task, pad):
    """
    The same for a tuned model: of classify and entail for transformers, of embed for
    sentence-transformers. pad: the id of padding. Raises OSError, or a UserError for other tasks.
    """
    if task.name not in ("classify", "entail", "embed"):
        raise UserError(f"the model is tuned for {task.name}, which reads several rows for an "
                        "answer: transformers has no model for that. Use python finetune.py "
                        "predict")
    shape = {name: getattr(config, name) for name in SHAPE}
    more = {"pad_token_id": pad, "architectures": ["GPT2Model"]}
    if task.name != "embed":
        names = [str(label) for label in task.labels]
        more.update(architectures=["GPT2ForSequenceClassification"],
                    id2label=dict(enumerate(names)),
                    label2id={name: i for i, name in enumerate(names)})
    write(folder, shape, tokenizer.eot, weights, more)
    if task.name == "embed":
        write_pooling(folder, config.n_embd, config.block_size)


def write_pooling(folder, n_embd, block_size):
    """
    What sentence-transformers needs beside the model to make the vectors of finetune.py's embed: a
    list of three modules, the settings of the first two, none for the third. Raises OSError.
    """
    kinds = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"),
             ("2", "2_Normalize", "Normalize"))
    modules = [{"idx": int(number), "name": number, "path": path,
                "type": f"sentence_transformers.models.{kind}"} for number, path, kind in kinds]
    # the t-th token counts t times, and padding nothing
    pooling = {"word_embedding_dimension": n_embd, "pooling_mode_mean_tokens": False,
               "pooling_mode_weightedmean_tokens": True}
    files = {"modules.json": modules,
             "sentence_bert_config.json": {"max_seq_length": block_size, "do_lower_case": False},
             "1_Pooling/config.json": pooling}
    for path in ("1_Pooling", "2_Normalize"):
        os.makedirs(os.path.join(folder, path), exist_ok=True)
    for file, content in files.items():
        with atomic_write(os.path.join(folder, file)) as f:
            f.write(json.dumps(content).encode())
