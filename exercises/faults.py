"""
The faults that find_the_fault.py plants. (Play before you read: this file has the answers.)

Each fault replaces some text in train_gpt2.py. `gives_away` says how it shows, measured with seed
1337.
"""
from typing import NamedTuple


class Fault(NamedTuple):
    name: str  # what a player types
    what: str  # the description in the list that a player sees
    replacements: tuple  # old, new, old, new ...; each old text occurs exactly once in train_gpt2.py
    gives_away: str = ""


FAULTS = [
    Fault("nothing", "nothing is wrong", (), "Everything is in the band, and no line of the log looks odd."),
    Fault("undivided", "losses are not divided by the number of micro steps before backward", (
        """            loss = loss / grad_accum_steps
            loss_accum += loss.detach()
""", """            loss_accum += loss.detach() / grad_accum_steps
"""),
        "The norm is twice what it should be in every step (there are two micro steps). The losses hardly change, "
        "because AdamW divides by the size of the gradient, and clipping limits it."),
    Fault("unshifted", "the labels are the inputs, not shifted by one", (
        "buf[:-1].view(B, T), buf[1:].view(B, T)", "buf[:-1].view(B, T), buf[:-1].view(B, T)"),
        "The train loss falls to almost zero within 100 steps: the model has learned to copy its input. Validation "
        "shifts the labels itself, so its loss climbs."),
    Fault("unmasked", "attention has no causal mask", ("is_causal=True", "is_causal=False"),
        "Train and validation losses are 0.04 too good, and the sample is full of ooo, because there is no future to "
        "look at when the model generates. heads sees the future too, but gains 0.77: there the future arrives in "
        "fixed places, while here the model must first learn to attend to it, and 300 steps are few."),
    Fault("warmup", "the warm-up is off by one", ("(step + 1) / config.warmup_steps",
                                                   "step / config.warmup_steps"),
        "Only the log shows it: step 0 has lr 0.0000e+00, so it changes nothing, and every learning rate of the "
        "warm-up is one step late."),
    Fault("untied", "the head's weights are not tied to the embedding", (
        "        self.transformer.wte.weight = self.lm_head.weight\n", ""),
        "--show=weights: lm_head and wte have different stds, but they should be one tensor. The losses are close to "
        "those of a sound run: train 0.02 too low at step 100, validation 0.03 too high at the end, both OUTSIDE."),
    Fault("noisy_evals", "dropout stays on in validation", (
        "    loss_sum = 0.0\n    raw_model.eval()\n", "    loss_sum = 0.0\n"),
        "This is the hardest one: validation is about 0.01 above the sound run with the same seed, but still in the "
        "band. The train losses equal the sound run's to the last digit, so only the evals can be wrong."),
    Fault("quiet_training", "the model stays in eval mode after the first validation", (
        "    raw_model.train()\n    # one sum", "    # one sum",
        "    raw_model.train()\n    for i, row", "    for i, row"),
        "From the first validation (step 0) on there is no dropout, so the train loss is 0.02 to 0.03 lower than it "
        "can be with dropout. The validation loss is no better."),
    Fault("bfloat16_loss", "the loss is computed in bfloat16", ("logits.float()", "logits.bfloat16()"),
        "Look at the printed losses: 3.031250, 2.984375, 2.640625. Between 2 and 4 all are multiples of 1/64, because "
        "bfloat16 has 8 significant bits. Validation at step 0 is 0.08 too low, because rounding errors add up in a "
        "long sum. In a run this short the curve looks fine."),
    Fault("heads", "the heads are put together without the transpose", (
        "y.transpose(1, 2).reshape(B, T, C)", "y.reshape(B, T, C)"),
        "Between steps 100 and 200 both losses fall far below the band (validation is 0.77 too low at the end), but "
        "the sample is no better: each token gets the outputs of other tokens in its row, some of them future ones. "
        "unmasked sees the future too, but gains only 0.04 in 300 steps."),
    Fault("zero_grad", "the gradients are never zeroed", (
        "        optimizer.zero_grad(set_to_none=True)\n", ""),
        "The norm is twice as large and shrinks slowly, and all losses are 0.05 to 0.25 too high, because each step "
        "follows the sum of all gradients so far."),
    Fault("decayed_norms", "weight decay is applied to norms and biases", (
        '"weight_decay": 0.0}', '"weight_decay": weight_decay}'),
        "--show=weights: the gains of all LayerNorms are a sixth too small (ln_f 0.97 instead of 1.12). The losses do "
        "not show it, because the other layers compensate. Only the gradient norm is OUTSIDE at the end."),
    Fault("positions", "the positions are off by one", (
        "position_ids = torch.arange(idx.size(1), device=idx.device)",
        "position_ids = (torch.arange(idx.size(1), device=idx.device) + 1).clamp(max=self.config.block_size - 1)"),
        "--show=weights: the first row of wpe is very short, because nothing trains it; in a sound run it is the "
        "longest. The losses do not show it."),
    Fault("same_batch", "the loader never moves on", (
        "        self.position += B * T * self.num_processes\n", ""),
        "The train loss falls to zero and validation climbs above 7: the model memorizes one batch. In unshifted "
        "validation climbs even higher, and the train loss is lower by step 100."),
    Fault("val_on_train", "validation reads the training text", (
        "DataLoaderLite(data.val, B", "DataLoaderLite(data.train, B"),
        "Validation is below the train loss and far below the band, while the train loss equals the sound run's to "
        "the last digit. So the weights are sound, and only the validation text is wrong."),
    Fault("one_group", "only the second parameter group gets the scheduled learning rate", (
        "for group in optimizer.param_groups:", "for group in optimizer.param_groups[1:]:"),
        "All losses are 0.2 to 0.4 too high from the start, because the matrices get the full learning rate without "
        "warm-up or decay. The log does not show it: it prints the scheduled rate."),
    Fault("unclipped", "the gradient is not clipped", ("config.grad_clip)\n        lr", "math.inf)\n        lr"),
        "--show=norm: 161.6 at step 35, 53.7 at step 38, 22.5 at step 100; a sound run stays below 6. AdamW's v "
        "remembers such a gradient for about 150 steps (0.95^150 = 0.0005), and the update is divided by sqrt(v), so "
        "the steps after it are short: validation is 0.8 too high at step 100 and 0.3 too high at step 300."),
    Fault("embedding", "the position embedding is initialized from N(0, 1), PyTorch's default", (
        "            nn.init.normal_(module.weight, mean=0.0, std=0.02)\n\n",
        "            nn.init.normal_(module.weight, mean=0.0, std=1.0)\n\n"),
        "--show=weights: wpe has a std of 0.82 instead of 0.02, so the position drowns out the character. The first "
        "norm is a ninth of what it should be, and the loss stays at 3.3, which character frequencies alone would "
        "give."),
    Fault("residual", "the MLP replaces the residual stream instead of adding to it", (
        "x = x + self.mlp", "x = self.mlp"),
        "The first norm is 10 instead of 4, and losses are 0.1 too high: to reach the lower blocks, the gradient has "
        "to pass through every MLP. The damage is small because this model has only four blocks."),
    Fault("unscaled", "the attention scores are not divided by sqrt(hs)", (
        "is_causal=True", "is_causal=True, scale=1.0"),
        "Train losses are 0.02 too high at steps 100 and 300, and the later rows of wpe are too long. With hs = 32 "
        "the scores are 5.7 times as large, which does little harm in a fresh model."),
    Fault("late_labels", "the labels are two tokens ahead", (
        "B * T * self.process_rank, B * T + 1)", "B * T * self.process_rank, B * T + 2)",
        "buf[:-1].view(B, T), buf[1:].view(B, T)", "buf[:-2].view(B, T), buf[2:].view(B, T)"),
        "Train loss is 2.90 and validation 3.65, both far too high. The gap is the sign: training predicts the token "
        "after the next one, validation the next one."),
]


def plant(fault, text):
    """The text of train_gpt2.py -> the text with the fault. AssertionError unless each old piece occurs once."""
    for old, new in zip(fault.replacements[::2], fault.replacements[1::2], strict=True):
        assert text.count(old) == 1, f"{fault.name}: {old!r} is in train_gpt2.py {text.count(old)} times"
        text = text.replace(old, new)
    return text
