"""Trains a tiny Llama on real ranks over gloo and measures each rank: run in an environment.

    python sharded_ranks.py NAME...

Prints one JSON list, a row for each case: what stood on the rank that held the most, and its most
in each phase. standins/tensor_bytes.c has to be preloaded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import transformers
from sharded_cases import CASES, CONFIG, LORA_ALPHA, Case

STEPS = 3  # the optimizer's state is there from the second on
Sizes = dict[int, int]
#: standins/tensor_bytes.c, which is preloaded.
COUNTER = ctypes.CDLL(None)
COUNTER.tensor_bytes_now.restype = COUNTER.tensor_bytes_most.restype = ctypes.c_size_t


class Samples(torch.utils.data.Dataset):
    """Samples of one length."""

    def __init__(self, tokens: int, count: int) -> None:
        self._tokens, self._count = tokens, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(self._tokens) * 7 + index) % 1000
        return {"input_ids": ids, "labels": ids.clone()}


class Marks(transformers.TrainerCallback):
    """Keeps the most of each phase of a step, and what stands when the optimizer begins."""

    def __init__(self, case: Case) -> None:
        self.case, self.name = case, "begin"
        self.standing, self.most = {}, {}
        self._before = COUNTER.tensor_bytes_now()

    def on_train_begin(self, args, state, control, **_):
        self.trainer.model_wrapped.train()
        if self.case.deepspeed is None:
            return
        optimizer = self.trainer.deepspeed.optimizer
        step = optimizer.step

        def marked(*words: Any) -> Any:
            self.look()
            return step(*words)

        optimizer.step = marked

    def on_step_begin(self, args, state, control, **_):
        self.phase("step")

    def on_pre_optimizer_step(self, args, state, control, **_):
        if self.case.deepspeed is None:
            self.look()

    def on_train_end(self, args, state, control, **_):
        self.phase("end")
        self.phase("")

    def look(self) -> None:
        """See what stands when the optimizer begins."""
        self.phase("optimizer")
        if self.trainer.state.global_step == STEPS - 1:
            self.standing = standing(self.trainer)

    def phase(self, name: str) -> None:
        """End the phase before; of one that came more than once, the last counts."""
        self.most[self.name] = COUNTER.tensor_bytes_most() - self._before
        self.name = name


def storages(tensors: Any) -> Sizes:
    """Return the bytes of each storage that tensors lie in; what is empty has none."""
    found = {}
    for tensor in tensors:
        local = getattr(tensor, "_local_tensor", tensor)
        if isinstance(local, torch.Tensor) and local.device.type == "cpu":
            storage = local.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    return found


def alive() -> list[torch.Tensor]:
    """List the tensors that Python knows of."""
    found = []
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            found.append(item)
            grad = item._grad if item.is_leaf else None
            found += [grad] if grad is not None else []
    return found


def standing(trainer: transformers.Trainer) -> dict[str, int]:
    """Return the bytes of what stands now, by kind; a storage counts for the first that has it."""
    model, optimizer = trainer.model_wrapped, trainer.optimizer
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    parameters = list(model.parameters())
    zero = getattr(trainer, "deepspeed", None)
    zero = zero.optimizer if zero is not None else None
    kinds = {
        "weights": [*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)],
        "gradients": [*(p.grad for p in parameters), *_gradients(zero)],
        "optimizer": [
            *(v for state in inner.state.values() for v in state.values()),
            *_master(zero),
        ],
        "buckets": _buckets(zero),
        "other": alive(),
    }
    seen: set[int] = set()
    sizes = {}
    for kind, tensors in kinds.items():
        found = storages(tensors)
        sizes[kind] = sum(size for key, size in found.items() if key not in seen)
        seen |= set(found)
    return sizes


def _gradients(zero: Any) -> list[Any]:
    found = [getattr(zero, "grad_partitions_flat_buffer", None)]
    for parts in (getattr(zero, "averaged_gradients", None) or {}).values():
        found += parts or []
    return found


def _master(zero: Any) -> list[Any]:
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    return [part for name in names for part in getattr(zero, name, [])]


def _buckets(zero: Any) -> list[Any]:
    found = []
    for bucket in (getattr(zero, "ipg_buckets", None) or {}).values():
        buffer = bucket.buffer
        found += buffer if isinstance(buffer, list) else [buffer]
    return found


def arguments(case: Case, folder: str) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=folder, use_cpu=True, per_device_train_batch_size=case.micro_batch,
        gradient_accumulation_steps=case.accumulation, max_steps=STEPS, save_strategy="no",
        report_to=[], disable_tqdm=True, logging_steps=100, dataloader_pin_memory=False,
        gradient_checkpointing=case.checkpointing, bf16=case.bf16, optim=case.optimizer,
        remove_unused_columns=False, ddp_find_unused_parameters=False,
        deepspeed=case.deepspeed, ddp_backend="gloo" if case.ranks > 1 else None,
        **case.fsdp,
    )  # fmt: skip


def _foreach() -> None:
    """Make AdamW update all tensors together, as it does on a GPU by default."""
    start = torch.optim.AdamW.__init__

    def changed(self: Any, *words: Any, **named: Any) -> None:
        start(self, *words, **named | ({} if named.get("fused") else {"foreach": True}))

    torch.optim.AdamW.__init__ = changed


def model_of(case: Case) -> torch.nn.Module:
    config = transformers.LlamaConfig(**CONFIG)
    config.use_cache = False
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    dtype = torch.bfloat16 if case.bf16_weights else torch.float32
    model = transformers.LlamaForCausalLM._from_config(config, dtype=dtype)
    if case.lora_rank:
        targets = "all-linear"
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=case.lora_rank, lora_alpha=LORA_ALPHA, target_modules=targets)
        )
    return model


def measured(case: Case, folder: str) -> dict[str, Any]:
    """Train on this rank; the peak is of tensors' storages, the model's own included."""
    torch.set_num_threads(1)
    _leave_out_gloo()
    _foreach()
    marks = Marks(case)
    trainer = trainer_of(case, folder, marks)
    trainer.train()
    return {"phases": marks.most, "standing": marks.standing}


def _without_index() -> None:
    """Name the CPU to FSDP without the index that accelerate gives it, which FSDP does not know."""
    kind = torch.distributed.fsdp.FullyShardedDataParallel
    start = kind.__init__

    def changed(self: Any, *words: Any, **named: Any) -> None:
        start(self, *words, **named | {"device_id": torch.device("cpu")})

    kind.__init__ = changed


def _leave_out_gloo() -> None:
    """Leave out the copies that gloo makes of what it gathers and reduces; NCCL makes none."""
    kind = torch.distributed.ProcessGroup
    for name in dir(kind):
        if "gather" in name or "scatter" in name:
            setattr(kind, name, _left_out(getattr(kind, name)))


def _left_out(kept: Any) -> Any:
    def called(*words: Any, **named: Any) -> Any:
        COUNTER.tensor_bytes_leave_out(1)
        try:
            found = kept(*words, **named)
            if hasattr(found, "wait"):
                found.wait()
            return found
        finally:
            COUNTER.tensor_bytes_leave_out(0)

    return called


def trainer_of(case: Case, folder: str, marks: Marks) -> transformers.Trainer:
    settings = arguments(case, folder)
    if case.fsdp:
        _without_index()
        # accelerate shards on accelerators only; the device stays the CPU
        accelerate.PartialState._shared_state["distributed_type"] = (
            accelerate.utils.DistributedType.MULTI_GPU
        )
    samples = Samples(case.length, STEPS * case.micro_batch * case.accumulation * case.ranks)
    trainer = transformers.Trainer(
        model_of(case), settings, train_dataset=samples, callbacks=[marks]
    )
    marks.trainer = trainer
    compute = trainer.compute_loss

    def loss(*words: Any, **named: Any) -> Any:
        marks.phase("forward")
        found = compute(*words, **named)
        marks.phase("backward")
        return found

    trainer.compute_loss = loss
    return trainer


def _rank(case: Case, rank: int, port: int, answer: Path) -> None:
    words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "MASTER_PORT": port,
             "LOCAL_WORLD_SIZE": case.ranks, "LOCAL_SIZE": case.ranks,
             "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    if case.ranks > 1:
        os.environ.update({name: str(word) for name, word in words.items()})
    if case.deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measured(case, folder)
        except BaseException:  # noqa: BLE001  told with the case it belongs to
            found = {"failed": traceback.format_exc()}
    answer.write_text(json.dumps(found))


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Fork the ranks: what they import is there already."""
    port, children = _port(), []
    for rank in range(case.ranks):
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            _rank(case, rank, port, folder / f"{rank}.json")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    answers = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(case.ranks)]
    return {"name": case.name, **max(answers, key=_peak)}


def _peak(answer: dict[str, Any]) -> int:
    """Return the most of any step; a rank that failed counts for more than any."""
    steps = answer.get("phases", {"failed": 1 << 62}).items()
    return max(size for phase, size in steps if phase not in ("begin", "end"))


def main() -> None:
    """Import once for all forks, then run the cases."""
    import datasets  # noqa: F401, PLC0415
    import deepspeed  # noqa: PLC0415
    import torch._dynamo  # noqa: PLC0415
    import torch._inductor.runtime  # noqa: F401, PLC0415

    assert transformers.Trainer
    assert transformers.LlamaForCausalLM
    deepspeed.comm.torch.build_shm_op = lambda: None  # it would be compiled first
    gc.freeze()  # what is there already holds no tensor of the ranks
    rows = []
    for case in [case for case in CASES if not sys.argv[1:] or case.name in sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(case, Path(folder)))
    print(f"\n{json.dumps(rows)}")


if __name__ == "__main__":
    main()
