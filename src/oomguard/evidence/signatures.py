"""What real programs print when memory runs out, and what only looks like it: one table.

The order matters: the first signature that matches a line names it. Look-alikes stand first, then
what says more than what follows it. `needle` is a lower-case literal that every match contains;
`ROOTS` are the few literals of which every needle contains one, so that a block of ordinary lines
is passed over without looking at its lines.
"""

# ruff: noqa: E501, S108 -- a row of the table is one line; /dev/shm stands in a pattern
from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from oomguard.evidence.verdict import Kind, Phase


class Reading(str, Enum):
    """What it means that a signature matches."""

    SHORTAGE = "shortage"  # strong: says by itself that memory ran out
    MASKED = "masked"  # weak: often the face of a shortage; proves nothing alone
    KILLED = "killed"  # weak: SIGKILL, for which memory is one reason of several
    LOOK_ALIKE = (
        "look-alike"  # names memory or a resource, and is no shortage of RAM or device memory
    )
    ERROR = "error"  # a failure that is not of memory
    SYMPTOM = "symptom"  # what other processes say after the root
    WRAPPER = "wrapper"  # a launcher or a loader repeating that something below it failed
    TEARDOWN = "teardown"  # noise of processes that end
    HANDLED = "handled"  # the program caught a shortage and goes on
    COMPLETED = "completed"  # the training reached its end


class Figures(Enum):
    """Which sizes the message states, so which continuation lines are worth waiting for."""

    NONE = 0
    REQUESTED = 1
    CAPACITY = 2
    BOTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One rule: a name, a pattern with its literal, what a match means, and where it is printed."""

    id: str
    needle: str
    pattern: re.Pattern[str] = field(repr=False)
    reading: Reading
    kind: Kind
    source: str
    phase: Phase = Phase.UNKNOWN
    figures: Figures = Figures.NONE

    @property
    def strong(self) -> bool:
        """Return whether a match is enough by itself."""
        return self.reading not in (Reading.MASKED, Reading.KILLED)


ROOTS = (
    b"memory", b"alloc", b"oom", b"kill", b"error", b"exception", b"interrupt", b"exit", b"signal",
    b"fault", b"abort", b"cuda failure", b"_status_", b"resource", b"no space left",
    b"train_runtime", b"training", b"trainer.fit", b"watchdog", b"batch size", b"abruptly",
    b"out_of_me", b"unexpectedly", b"rc=", b"paging file", b"available ram", b"caller indicates", b"zero-fill",
)  # fmt: skip


def _rows(reading: Reading, kind: Kind, *rows: tuple[object, ...]) -> tuple[Signature, ...]:
    """Make signatures of rows (id, needle, pattern, source[, Figures or Phase ...])."""
    made = []
    for row in rows:
        name, needle, pattern, source, *more = row
        extra = {"figures" if isinstance(m, Figures) else "phase": m for m in more}
        made.append(
            Signature(
                id=str(name), needle=str(needle), pattern=re.compile(str(pattern)),
                reading=reading, kind=kind, source=str(source), **extra,  # type: ignore[arg-type]
            )
        )  # fmt: skip
    return tuple(made)


_NONE, _ASKED, _CAPACITY, _BOTH = Figures
_SIZE = r"[\d.,]+ ?(?:[KMGTPE]?i?B|[Bb]ytes)\b"

LOOK_ALIKES = _rows(
    Reading.LOOK_ALIKE, Kind.NOT_OOM,
    ("triton-shared-memory", "out of resource: shared memory", r"(?i)out of resource: shared memory", "triton-lang/triton runtime/errors.py"),
    ("triton-out-of-resources", "outofresources", r"\bOutOfResources\b", "triton-lang/triton runtime/errors.py"),
    ("cuda-shared-limit", "error", r"(?i)uses too much shared (?:data|memory)", "NVIDIA ptxas"),
    ("static-tls", "cannot allocate memory in static tls", r"(?i)cannot allocate memory in static TLS block", "glibc elf/dl-reloc.c"),
    ("memlock-limit", "cannot allocate memory", r"ibv_\w+.{0,80}Cannot allocate memory", "NVIDIA/nccl troubleshooting: ulimit -l"),
    ("illegal-address", "illegal memory access", r"an illegal memory access was encountered", "CUDA runtime error 700"),
    ("retry-not-failure", "caller indicates", r"The caller indicates that this is not a failure", "tensorflow/tensorflow bfc_allocator.cc"),
    ("tcmalloc-notice", "large alloc", r"tcmalloc: large alloc \d+", "google/tcmalloc notice"),
    ("cache-flush-notice", "memory pressure", r"pytorch allocator cache flushes since last step|high memory pressure", "deepspeedai/DeepSpeed stage3.py warning"),
    ("not-oom-killed", "oomkilled", r"(?i)\bOOMKilled[\"']?\s*[:=]\s*[\"']?false", "docker inspect"),
    ("jvm-heap", "outofmemoryerror", r"java\.lang\.OutOfMemoryError", "OpenJDK: the heap that -Xmx sets"),
    ("kv-cache-share", "no available memory", r"No available memory for the cache blocks", "vllm-project/vllm: wants a larger share"),
    ("file-descriptors", "error", r"Error.{0,200}Too many open files|Too many open files.{0,200}[Ee]rror", "ulimit -n"),
    ("port-in-use", "error", r"(?i)error.{0,250}\baddress already in use\b", "errno 98, and pytorch/pytorch TCPStore.cpp"),
    ("multimodal-tokens", "error", r"Image features and image tokens do not match", "hiyouga/LLaMA-Factory#5964"),
)  # fmt: skip

_DEVICE = _rows(
    Reading.SHORTAGE, Kind.DEVICE_OOM,
    ("torch-device-allocator", "out of memory", r"\b(?:CUDA|HIP|XPU|NPU|MLU|MUSA|PrivateUse1) out of memory\b", "pytorch/pytorch CUDACachingAllocator.cpp", _BOTH),
    ("torch-mps-allocator", "mps backend out of memory", r"MPS backend out of memory", "pytorch/pytorch MPSAllocator.mm", _BOTH),
    ("nccl-cuda", "cuda failure", r"Cuda failure (?:\d+ )?'out of memory'", "NVIDIA/nccl checks.h"),
    ("cuda-host-text", "error out of memory at line", r"Error out of memory at line \d+ in file", "bitsandbytes-foundation/bitsandbytes csrc"),
    ("xla-exhausted", "resource_exhausted", r"RESOURCE_EXHAUSTED: ?(?:Out of memory|OOM|[Ff]ailed to allocate|Ran out of memory|XLA:TPU.{0,60}[Rr]an out of memory|Error allocating)", "openxla/xla", _ASKED),
    ("tf-exhausted", "oom when allocating", r"OOM when allocating tensor", "tensorflow/tensorflow"),
    ("tf-bfc-allocator", "ran out of memory trying to allocate", r"Allocator \(\w+\) ran out of memory trying to allocate", "tensorflow/tensorflow bfc_allocator.cc", _ASKED),
    ("onnxruntime-arena", "failed to allocate memory for requested buffer", r"Failed to allocate memory for requested buffer of size \d+", "microsoft/onnxruntime bfc_arena.cc", _ASKED),
    ("paddle-gpu", "out of memory error on", r"Out of memory error on (?:GPU|XPU|NPU)", "PaddlePaddle/Paddle cuda_allocator.cc", _ASKED),
    ("cupy-pool", "out of memory allocating", r"Out of memory allocating [\d,]+ bytes", "cupy/cupy memory.pyx", _ASKED),
    ("cudamalloc", "cudamalloc", r"cudaMalloc\w*(?: retry)? failed:? out of memory", "ggml-org/llama.cpp, apache/mxnet", _ASKED),
    ("hpu-devmem", "allocation failed", r"MODULE:PT_DEVMEM\W{1,4}Allocation failed", "Intel Gaudi PyTorch bridge", _ASKED),
    ("no-batch-left", "no executable batch size found", r"No executable batch size found, reached zero", "huggingface/accelerate utils/memory.py"),
    ("cuda-libraries", "alloc_failed", r"\b(?:CUBLAS|CUSOLVER|CUDNN|CUSPARSE|HIPBLAS)_STATUS_ALLOC_FAILED\b|\bCUFFT_ALLOC_FAILED\b", "NVIDIA and AMD math libraries"),
)  # fmt: skip

#: Driver and runtime forms: they state no size, and pinning host memory gives the same words.
DRIVER_FORMS = _rows(
    Reading.SHORTAGE, Kind.DEVICE_OOM,
    ("cuda-driver", "out of memory", r"(?i)\b(?:CUDA|HIP|NPU)(?: driver| runtime)? error(?: ?\(?2\)?)? ?: ?out of memory|CUDA failed with error out of memory", "pytorch/pytorch c10/cuda/CUDAException.cpp"),
    ("cuda-error-name", "error", r"\bCUDA_ERROR_OUT_OF_MEMORY\b|\bcudaErrorMemoryAllocation\b|\bhipErrorOutOfMemory\b|\bcuda error: ?cudaErrorMemoryAllocation", "CUDA and HIP error names"),
    ("xpu-driver", "out_of_device_memory", r"\b(?:UR|ZE|PI)_(?:RESULT_)?ERROR_OUT_OF_DEVICE_MEMORY\b", "oneapi-src/unified-runtime"),
    ("rmm", "out_of_memory", r"rmm::out_of_memory|bad_alloc: out_of_memory", "rapidsai/rmm"),
    ("torch-device-type", "outofmemoryerror", r"\b(?:torch(?:\.cuda)?|cupy\.cuda\.memory)\.OutOfMemoryError\b", "pytorch/pytorch exception type", _BOTH),
)  # fmt: skip

_PINNED = _rows(
    Reading.SHORTAGE, Kind.PINNED_OOM,
    ("pinned-alloc", "hostalloc", r"(?i)\b(?:cuda|cuMem)HostAlloc\b.{0,80}(?:out of memory|failed|error|OUT_OF_MEMORY)", "CUDA page-locked host memory"),
    ("pinned-malloc", "allochost", r"(?i)\b(?:cudaMalloc|cuMemAlloc)Host\b.{0,80}(?:out of memory|failed|error|OUT_OF_MEMORY)", "CUDA page-locked host memory"),
    ("pinned-hip", "hostmalloc", r"(?i)\bhipHostMalloc\b.{0,80}(?:out of memory|failed|error|OutOfMemory)", "HIP page-locked host memory"),
    ("pinned-host", "alloc", r"(?:failed to alloc(?:ate)?|could not allocate)\b.{0,60}(?:bytes on host|pinned host memory)", "tensorflow/tensorflow cuda_driver.cc", _ASKED),
    ("pinned-register", "out of memory", r"(?i)cuda_?host_?register.{0,60}out of memory", "CUDA page-locked host memory"),
)  # fmt: skip

_SHM = _rows(
    Reading.SHORTAGE, Kind.SHM_OOM,
    ("dataloader-bus-error", "shared memory", r"workers are out of shared memory|bus error encountered in worker|insufficient shared memory \(shm\)", "pytorch/pytorch torch/utils/data/_utils/signal_handling.py"),
    ("nccl-shm-fallocate", "fallocate", r"posix_fallocate failed\s*: ?No space left", "NVIDIA/nccl shmutils.cc"),
    ("nccl-shm", "error", r"failed to extend /dev/shm/\S+ to \d+ bytes", "NVIDIA/nccl shmutils.cc", _ASKED),
    ("nccl-shm-segment", "shared memory segment", r"Error while (?:creating|attaching to) shared memory segment /dev/shm/", "NVIDIA/nccl shmutils.cc"),
    ("torch-shm-file", "no space left", r"unable to (?:write to file|mmap|resize|allocate|open)\b.{0,120}</?(?:torch|psm|mp)[_-].{0,120}No space left on device", "pytorch/pytorch MapAllocator.cpp"),
    ("torch-shm-map", "cannot allocate memory", r"unable to mmap \d+ bytes from file </?(?:torch|psm|mp)[_-].{0,120}Cannot allocate memory", "pytorch/pytorch MapAllocator.cpp", _ASKED),
    ("shm-full", "no space left", r"/dev/shm\b.{0,200}No space left on device|No space left on device.{0,100}(?:/dev/shm|'/psm_)", "tmpfs: ENOSPC on /dev/shm"),
    ("shm-resize", "shared memory segment", r"could not resize shared memory segment.{0,200}No space left", "POSIX shared memory"),
)  # fmt: skip

_KERNEL_TEXT = _rows(
    Reading.SHORTAGE, Kind.HOST_OOM,
    ("kernel-oom-killer", "oom", r"\binvoked oom-killer\b|\boom-kill:(?:constraint=|\S*\.\.\.)|\boom_reaper: reaped process", "Linux mm/oom_kill.c"),
    ("kernel-killed", "out of memory: kill", r"(?i)out of memory: kill(?:ed)? process", "Linux mm/oom_kill.c"),
    ("slurm-oom-kill", "oom", r"Detected \d+ oom[-_]kill event|tasks? have been OOM Killed", "SchedMD/slurm task/cgroup"),
    ("slurm-state", "out_of_me", r"\bOUT_OF_ME(?:\+|MORY)", "SchedMD/slurm sacct states"),
    ("slurm-cgroup", "out-of-memory handler", r"(?:may )?(?:have been )?killed by the cgroup out-of-memory handler", "SchedMD/slurm task/cgroup"),
    ("slurm-limit", "memory limit", r"[Ee]xceeded (?:job|step) memory limit|exceeded memory limit \(\d+ > \d+\)", "SchedMD/slurm jobacct_gather"),
    ("batch-limit", "kill", r"TERM_MEMLIMIT: job killed|PBS: job killed: (?:mem|vmem) ", "IBM LSF, OpenPBS"),
    ("systemd-oom", "oom", r"[Ff]ailed with result 'oom-kill'|has been killed by the OOM killer|systemd-oomd killed", "systemd"),
    ("kubernetes", "oomkilled", r"\bOOMKilled\b", "kubernetes container state"),
    ("colab", "available ram", r"session crashed after using all available RAM", "Google Colab kernel memory limit"),
    ("ray-task", "outofmemoryerror", r"ray\.exceptions\.OutOfMemoryError", "ray-project/ray memory monitor", _CAPACITY),
    ("ray-monitor", "low on memory", r"killed due to the node running low on memory", "ray-project/ray memory monitor", _CAPACITY),
    ("dask-nanny", "memory budget", r"[Ww]orker exceeded \d+% memory budget", "dask/distributed nanny"),
)  # fmt: skip

_HOST = _rows(
    Reading.SHORTAGE, Kind.HOST_OOM,
    ("torch-cpu-allocator", "alloc", r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|not enough memory: you tried to allocate", "pytorch/pytorch c10/core/impl/alloc_cpu.cpp", _ASKED),
    ("numpy", "unable to alloc", r"Unable to allocate " + _SIZE, "numpy/numpy _ArrayMemoryError", _ASKED),
    ("arrow", "malloc of size", r"\b(?:m|re)alloc of size \d+ failed", "apache/arrow memory_pool.cc", _ASKED),
    ("rust", "memory allocation of", r"memory allocation of \d+ bytes failed", "rust-lang/rust alloc (tokenizers, safetensors)", _ASKED),
    ("torch-mmap", "cannot allocate memory", r"unable to mmap \d+ bytes from file.{0,400}Cannot allocate memory", "pytorch/pytorch MapAllocator.cpp", _ASKED),
    ("windows-paging", "paging file", r"The paging file is too small for this operation", "Windows error 1455"),
    ("loader-zero-fill", "zero-fill", r"cannot map zero-fill pages", "glibc elf/dl-map-segments.h"),
    ("bad-alloc", "bad_alloc", r"\bstd::bad_alloc\b", "C++ operator new"),
    ("enomem", "cannot allocate memory", r"\b[Cc]annot allocate memory\b", "errno 12"),
    ("python-memory-error", "memoryerror", r"(?:^|[\s.(])MemoryError\s*(?::|\(|$)", "CPython MemoryError"),
)  # fmt: skip

_MASKED = _rows(
    Reading.MASKED, Kind.DEVICE_OOM,
    ("tf-pool-growth", "failed to alloc", r"failed to alloc(?:ate)? .{0,60}from device: CUDA_ERROR_OUT_OF_MEMORY", "tensorflow/tensorflow: retries with less", _ASKED),
    ("cuda-libraries-masked", "_status_", r"\bCUBLAS_STATUS_NOT_INITIALIZED\b|\bCUSOLVER_STATUS_INTERNAL_ERROR\b|\bCUDNN_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR|NOT_SUPPORTED)\b", "NVIDIA math libraries"),
    ("thread-start", "error", r"\bcan't start new thread\b", "CPython: no room for a stack, or a limit on threads"),
    ("pinned-fallback", "pinned memory", r"failed to allocate .{0,40}of pinned memory", "ggml-org/llama.cpp: falls back to pageable"),
)  # fmt: skip

_KILLED = _rows(
    Reading.KILLED, Kind.HOST_OOM,
    ("dataloader-killed", "killed by signal", r"DataLoader worker \(pid\W*[\d, ]+\) is killed by signal: Killed", "pytorch/pytorch torch/utils/data"),
    ("map-child-died", "abruptly died", r"subprocesses has abruptly died", "huggingface/datasets py_utils.py", Phase.PREPROCESS),
    ("pool-child-died", "terminated abruptly", r"process pool was terminated abruptly", "CPython concurrent.futures"),
    ("torchrun-sigkill", "exitcode", r"exitcode\s*: ?(?:-9|137|247)\b", "pytorch/pytorch elastic"),
    ("torchrun-signal-9", "signal", r"\bSignal 9 \(SIGKILL\) received\b", "pytorch/pytorch elastic"),
    ("subprocess-sigkill", "signal", r"died with <Signals\.SIGKILL: 9>", "CPython subprocess"),
    ("exit-status-sigkill", "exit", r"(?i)\bexit(?:s|ed)?(?: with)?(?: return)?(?: code| status)?(?: was| of)?\s*[:=]?\s*(?:-9|137)\b", "launchers: 128 + 9"),
    ("launcher-sigkill", "exits with return code", r"exits with return code = (?:-9|247)\b", "deepspeedai/DeepSpeed launcher"),
    ("status-sigkill", "exit status", r"returned non-zero exit status (?:-9|137|247)\b", "CPython subprocess"),
    ("mpi-signal-9", "signal 9", r"exited on signal 9\b|terminated by signal 9\b", "Open MPI"),
    ("worker-sigkill", "sigkill", r"\bwas sent SIGKILL", "benoitc/gunicorn"),
    ("shell-killed", "kill", r"(?:^|: )line \d+:\s+\d+ Killed\b|^Killed$|\btask \d+: Killed\b", "bash, srun"),
)  # fmt: skip

_NOISE = (
    *_rows(
        Reading.HANDLED, Kind.OK,
        ("caught", "oom", r"(?i)attempting to recover from OOM|OOM in all workers|(?:caught|catching|recover(?:ed|ing)? from|skip(?:ped|ping)?\b.{0,40}\b(?:due to|because of|after)) (?:an? )?(?:\w+ )?OOM|\bOOM\b.{0,60}\b(?:skipp(?:ed|ing)|retrying|recovered|continuing)\b", "facebookresearch/fairseq, OpenNMT"),
        ("retried", "out of memory", r"(?i)(?:ran )?out of memory\b.{0,100}\b(?:skipping|retrying|will retry|recovering|continuing|ignoring this choice|falling back)\b", "facebookresearch/fairseq, comfyanonymous/ComfyUI, pytorch inductor"),
        ("skipped-memory", "out of memory", r"(?i)\b(?:skipp(?:ed|ing)|ignor(?:ed|ing)|retrying|recovered|recovering)\b.{0,80}(?:due to|because of|after|from)\b.{0,30}out of memory", "training loops that go on"),
        ("batch-decreased", "batch size", r"(?i)decreasing batch size to:? ?\d+|Batch size \d+ failed, trying batch size \d+", "huggingface/accelerate, Lightning-AI/pytorch-lightning"),
    ),
    *_rows(
        Reading.COMPLETED, Kind.OK,
        ("train-runtime", "train_runtime", r"\btrain_runtime\b[\"']?\s*[:=]", "huggingface/transformers Trainer"),
        ("training-completed", "training", r"(?i)\btraining progress:? *100%|\btraining (?:is |was |has )?(?:been )?(?:completed|complete|finished|done)\b(?! (?:with errors|in part))|\bfinished training\b|\bTraining time: [\d.]+s", "training loops"),
        ("fit-stopped", "trainer.fit", r"Trainer\.fit` stopped: `max_(?:epochs|steps)=\d+` reached", "Lightning-AI/pytorch-lightning"),
    ),
    *_rows(
        Reading.TEARDOWN, Kind.NOT_OOM,
        ("resource-tracker", "resource_tracker", r"\bresource_tracker\b", "CPython multiprocessing"),
        ("tracker-key", "error", r"^KeyError: '/(?:psm|mp|loky)[-_]", "CPython multiprocessing.resource_tracker"),
        ("died-unexpectedly", "unexpectedly", r"\bdied unexpectedly\b", "servers whose children end"),
    ),
    *_rows(
        Reading.SYMPTOM, Kind.NOT_OOM,
        ("nccl-watchdog", "watchdog", r"Watchdog caught collective operation timeout|watchdog thread terminated", "pytorch/pytorch ProcessGroupNCCL.cpp"),
        ("peer-gone", "error", r"\b(?:ConnectionResetError|BrokenPipeError|EOFError|ConnectionRefusedError)\b|Connection (?:closed by|reset by) peer|ncclRemoteError", "the peer of a process that ended"),
        ("collective-failed", "error", r"\bDistBackendError\b|\bncclSystemError\b|\bDistNetworkError\b|\bDistStoreError\b", "pytorch/pytorch c10d"),
        ("dataloader-exited", "error", r"DataLoader worker \(pid.{0,60}exited unexpectedly", "pytorch/pytorch torch/utils/data"),
    ),
    *_rows(
        Reading.WRAPPER, Kind.NOT_OOM,
        ("child-failed", "error", r"\bChildFailedError\b|\bCalledProcessError\b|\bProcessRaisedException\b|\bProcessExitedException\b", "pytorch/pytorch elastic, CPython subprocess"),
        ("launcher-exit", "exit", r"failed \(exitcode: -?\d+\)|exitcode\s*: ?-?\d+|exits with return code = -?[1-9]|non-zero exit (?:status|code)", "launchers"),
        ("launcher-rc", "rc=", r"\brc=-?[1-9]\d*\b", "scripts"),
        ("weights-not-converted", "error: we encountered some issues during automatic conversion", r"Error: We encountered some issues during automatic conversion of the weights", "huggingface/transformers 5 utils/loading_report.py: prints what each weight failed of, then this"),
    ),
    *_rows(
        Reading.ERROR, Kind.NOT_OOM,
        ("disk-full", "no space left", r"No space left on device|Disk quota exceeded", "errno 28"),
        ("crash-signal", "signal", r"\bSignal (?:11|6|4|8|7) \(SIG\w+\) received\b|caught signal \d+|got signal: \d+", "pytorch/pytorch elastic, Open MPI"),
        ("crash", "fault", r"\bSegmentation fault\b", "the process itself"),
        ("crash-python", "fatal python error", r"\bFatal Python error\b", "CPython"),
        ("abort", "abort", r"\bAborted \((?:core dumped|signal 6)\)", "abort(3)"),
        ("usage", "error: ", r"^(?:[\w./-]+(?: [\w-]+)?: )?error: ", "CPython argparse, jsonargparse"),
        ("python-interrupt", "interrupt", r"^KeyboardInterrupt\b", "CPython"),
        ("python-exception", "error", r"^(?:[\w.]+\.)?[A-Z_]\w*Error\b(?::| ?$)", "CPython traceback"),
        ("python-other-exception", "exception", r"^(?:[\w.]+\.)?[A-Z_]?\w*Exception\b(?::| ?$)", "CPython traceback"),
        ("cuda-other", "error", r"\bCUDA error: \w", "CUDA runtime"),
    ),
)  # fmt: skip

SIGNATURES: tuple[Signature, ...] = (
    *LOOK_ALIKES, *_NOISE[:4], *_MASKED[:1], *_PINNED, *_SHM, *_DEVICE, *DRIVER_FORMS,
    *_MASKED[1:], *_KERNEL_TEXT, *_HOST, *_KILLED, *_NOISE[4:],
)  # fmt: skip
BY_ID = {signature.id: signature for signature in SIGNATURES}
#: Look-alikes that are warnings: the program continues after them.
NOTICES = frozenset(
    {"retry-not-failure", "tcmalloc-notice", "cache-flush-notice", "not-oom-killed"}
)
#: Signatures that explain no failure.
HARMLESS = NOTICES | {s.id for s in SIGNATURES if s.reading is Reading.COMPLETED}

#: Words by which a sentence speaks about a shortage instead of reporting one; before the match.
ADVICE = re.compile(
    r"(?i)\b(?:if|avoid\w*|prevent\w*|may|might|could|in case|whenever|when you|would|to fix|helps?|"
    r"reduces?|without|instead of|no longer|never|not|handl\w+|detect\w*|against|such as|like|e\.g\.|"
    r"cause[sd]?|lead(?:s|ing)? to|get(?:ting)?|see(?:ing)?|face|facing|encounter)\b[^.:]{0,60}$"
)
#: The same, after the match: "... errors", "...`: reduce the batch size".
ADVICE_AFTER = re.compile(
    r"(?i)^['\"`*]*,?\s*(?:errors\b|issues?\b|problems?\b|exceptions\b|handling\b)"
    r"|^[`*]+\s*[:|]|^['\"`*]*[:.,;|]?\s*(?:->|=>|try|reduce|lower|decrease|use|set|consider)\b"
)
#: The form in which an exception is printed: what follows it is reported, not spoken about.
REPORTED = re.compile(r"(?:Error|Exception|ERROR|FATAL)\b[^:]{0,40}:\s*(?:\[[^\]]{0,60}\]\s*)?$")
#: Source code as tracebacks, diffs and config dumps show it.
CODE = re.compile(
    r"^\s*(?:[-+] ?)?(?:except|raise|if|elif|assert|return|def|class|import|from|with|print|log(?:ger|ging)?\.)\b"
    r"|\bin str\(|\bin repr\(|^\s*#.*\bexcept\b"
)
