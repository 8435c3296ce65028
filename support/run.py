"""
The record of a run, and whatever may interrupt it: signals, exceptions, full disks, a lack of
memory. Come here when a checkpoint or a line of the log is missing, or when a run ended in a way
that you did not expect.
"""
import contextlib
import os
import time
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.distributed as dist

from support import checkpoints, health
from support.arithmetic import mfu
from support.console import UserError, print0
from support.processes import (Signals, explain, keep_freed_memory, min_over_processes,
                               sum_over_processes)
from support.runlog import RunLog, open_log, run_number

# how the streams of log.txt are written; dt is in milliseconds
FORMATS = {"train": "{:.6f}", "lr": "{:.4e}", "dt": "{:.2f}"}


class Stopped(Exception):
    """A signal asked the run to stop: it saves and ends, with exit code 0."""


class Run:
    """
    with Run(config, start) as run:       start: what --resume or --init_from has read, or None
        step = run.restore(...)           opens the log; with --resume: moments, scaler, position
        run.turn(step, ...)               the state before an update; saved if a save is due
        run.end_if_any_process_stopped()  after a signal: save that state and end
        run.log(step, val=...)            console, log.txt, TensorBoard; a loss of nan ends the run
        with run.phase("HellaSwag", if_out_of_memory="--no-hellaswag"):  names what takes memory

    All processes make these calls in the same order. When an exception ends a run before the
    weights change, the state of that turn is saved. Run owns no setting, seed, learning rate or
    weight, and draws no random numbers: training without it gives the same losses.
    """

    def __init__(self, config, start):
        self.config = config  # log_dir, save_every, keep_last and tensorboard are used
        # the run to continue
        self.checkpoint = start if start is not None and config.resume else None
        self.saved_settings = {}  # what a checkpoint holds besides the state
        self.record = RunLog()  # writes nothing, except in the first process
        self.signals = Signals()
        self.phase_and_advice = self.usual_phase = ("", "")
        self.phase_began = 0.0
        self.state = None  # of the turn: step, model, optimizer, ...; None once the weights change
        self.last_save_failed = False
        self.step_seconds = 0.0
        self.recent_norms = []

    def __enter__(self):
        keep_freed_memory()
        return self

    def __exit__(self, kind, error, trace):
        try:
            if isinstance(error, Stopped):
                self.save()
                noted = self.signals.noted
                self.report_stop(noted[0].name if noted else "another process")
            elif error is not None:
                self.save_after(error)
                explained = explain(error, *self.phase_and_advice)
                if explained is not error:
                    raise explained from error
                return False
            if self.last_save_failed or self.record.waiting:
                raise UserError("the last checkpoint or the log could not be written", exit_code=1)
            return True
        finally:
            self.signals.restore()
            self.record.close()
            if dist.is_initialized():
                dist.destroy_process_group()

    def restore(self, config, process, tokenizer, loader, model, optimizer, scaler, last_step,
                **more):
        """
        Put optimizer, scaler and loader (or None) where the checkpoint was, if the run continues
        one, and open the log. config: the final settings; they and `more` go into each checkpoint.
        -> the step to start from. UserError if the data have changed since.
        """
        self.config, self.process, self.last_step = config, process, last_step
        self.model, self.loader, self.scaler = model, loader, scaler
        if model.config.vocab_size < tokenizer.n_vocab:
            raise UserError(f"vocab_size {model.config.vocab_size} is too small for a vocabulary "
                            f"of {tokenizer.n_vocab} tokens: leave --vocab_size out")
        if loader is not None:
            more["stream"] = checkpoints.identify_stream(loader)
        self.start_step = self.step = 0
        if self.checkpoint is not None:
            self.start_step = self.step = self.checkpoint["step"]
            checkpoints.restore(self.checkpoint, model, optimizer, scaler)
            if loader is not None:
                checkpoints.check_stream(self.checkpoint, loader, more["stream"], config.data_root)
                loader.position = self.checkpoint["position"]
        self.usual_phase = self.phase_and_advice = (
            f"a step with --B={config.B}", f"--B={config.B // 2}" if config.B > 1 else
            "a smaller --T, --activation_checkpointing, or --shard --offload on several GPUs")
        self.check_start()
        self.saved_settings = {
            "run": run_number(self.checkpoint, config.log_dir),
            "config": asdict(model.config), "train_config": asdict(config),
            "tokenizer": tokenizer.spec, **more,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}
        if process.rank == 0 and last_step > 0:  # --max_steps=0 only evaluates, and writes nothing
            self.record = open_log(config.log_dir, self.saved_settings, self.checkpoint,
                                   config.tensorboard)
        optimizer.register_step_pre_hook(self.forget_state)  # an update begins
        self.signals.catch()
        return self.start_step

    def check_start(self):
        """A collective. UserError unless all processes, which may be on several machines, agree."""
        least = min_over_processes(self.start_step)
        most = -min_over_processes(-self.start_step)
        if least < most:
            raise UserError(f"process {self.process.rank} would continue from step "
                            f"{self.start_step}, another one from a different step: "
                            f"{self.config.log_dir} must be one that all machines see", who="me")

    def turn(self, step, **state):
        """
        state: model, optimizer, scaler (its state), position and whatever else a checkpoint needs
        to continue with update number `step`. A collective under --shard, if a save is due.
        """
        self.step = step
        self.state = {**state, "step": step}
        every = self.config.save_every
        if step == self.last_step or every > 0 and step % every == 0:
            self.save()

    def forget_state(self, *_):
        self.state = None

    def check_log_dir(self):
        """
        If somebody has renamed or deleted log_dir, open a new log: under the same name, unless
        that is taken, perhaps by another run.
        """
        old, log_dir = self.record, self.config.log_dir
        if not old.has_lost_its_directory():
            return
        if os.path.exists(log_dir):
            log_dir = f"{os.path.normpath(log_dir)}_{self.saved_settings['run']}"
        old.close()
        try:
            self.record = open_log(log_dir, self.saved_settings, None, self.config.tensorboard)
        except UserError as e:
            print0(f"warning: {e}")
            return
        self.record.waiting, self.record.began = old.waiting, old.began
        print0(f"warning: {self.config.log_dir} was renamed or deleted: log and checkpoints from "
               f"step {self.step} on are in {log_dir}")
        self.config = replace(self.config, log_dir=log_dir)

    def save(self):
        """Write the state of this turn, unless that has been done. A collective under --shard."""
        # what a run starts with is a file already, or nothing but random numbers
        if self.state is not None and self.config.save_every > 0 and self.step > self.start_step:
            self.check_log_dir()
            self.last_save_failed = not checkpoints.save(
                self.config.log_dir, self.config.keep_last, self.state, self.saved_settings,
                self.step_seconds)
        self.state = None

    def save_after(self, error):
        """Save what an exception has left intact, or say why that is impossible."""
        if self.state is None:
            return
        if checkpoints.is_sharded(self.state["model"]) and self.process.num_processes > 1:
            print0("not saved: under --shard the weights are spread over all processes")
        elif "CUDA error" in str(error):
            print0("not saved: after a CUDA error nothing can be read from the GPU")
        else:
            self.save()
            self.report_stop("an error")

    def end_if_any_process_stopped(self):
        """A collective: was any process sent a signal? Then all of them save and end."""
        if sum_over_processes(len(self.signals.noted)) > 0:
            raise Stopped

    def report_stop(self, reason):
        advice = "this run has written no checkpoint"
        if checkpoints.list_all(self.config.log_dir):
            advice = "continue with --resume=auto"
            if self.config.log_dir != "log":
                advice += f" --log_dir={self.config.log_dir}"
        print0(f"stopped by {reason}: {self.step} steps are done; {advice}")

    @contextlib.contextmanager
    def phase(self, name, if_out_of_memory):
        """Around whatever may run out of memory. if_out_of_memory: what to try then"""
        self.phase_and_advice, self.phase_began = (name, if_out_of_memory), time.time()
        yield
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()  # a Mac's GPU has no memory of its own
        self.phase_and_advice = self.usual_phase  # not after an exception: __exit__ needs the phase

    def log(self, step, **values):
        """
        Print a line and append `step stream value` to log.txt for each of: train, lr, norm and dt
        (seconds) of an update; val; hella; metrics. A loss or norm of nan is a UserError.
        """
        if "train" in values:
            self.step_seconds = values["dt"]
            line = self.step_line(**values)
            values["dt"] *= 1000
        elif "hella" in values:
            line = (f"HellaSwag acc_norm: {values['hella']:.4f} | took "
                    f"{time.time() - self.phase_began:.1f}s")
        else:
            line = self.eval_line(step, **values)
        print0(f"step {step:5d} | {line}")
        self.check_log_dir()
        self.record.write(step, **{name: FORMATS.get(name, "{:.4f}").format(value)
                                   for name, value in values.items()})
        if "train" in values:
            health.check_numbers(step, values["train"], values["norm"], self.recent_norms,
                                 self.scaler, self.loader, self.config)

    def step_line(self, train, lr, norm, dt):
        """The line of an update, with the speed where a step has a fixed number of tokens."""
        line = f"loss: {train:.6f} | lr {lr:.4e} | norm: {norm:.4f} | dt: {dt * 1000:.2f}ms"
        settings = self.saved_settings["train_config"]
        if "total_batch_size" not in settings:
            return line
        # a coarse clock can stand still during a step
        tokens_per_second = settings["total_batch_size"] / max(dt, 1e-9)
        line += f" | tok/sec: {tokens_per_second:.2f}"
        if self.process.dtype != torch.float32:  # only 16-bit peaks are known
            per_card = tokens_per_second / self.process.num_processes
            line += mfu(self.process.card.name, self.model.config, settings["T"], per_card)
        return line

    def eval_line(self, step, val, bpb=None, **metrics):
        """The line of a validation: what is left, and whether the loss is a usual one."""
        line = f"validation loss: {val:.4f}"
        line += f" ({bpb:.2f} bits/byte)" if bpb is not None else ""
        line += "".join(f" | {name} {value:.4f}" for name, value in metrics.items())
        line += f" | {self.time_left(step)}"
        return line + health.compare_to_reference(step, val, self.model.config, self.config)

    def time_left(self, step):
        """Assuming that all steps take as long as those done so far -> text"""
        done = step - self.start_step
        if done == 0:
            return "time left: known after a few steps"
        seconds = (time.time() - self.record.began) / done * (self.last_step - step)
        return f"{seconds / 60:.1f} min left"
