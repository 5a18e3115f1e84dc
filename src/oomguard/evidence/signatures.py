"""What programs print when memory runs out, and what only looks like it: one table.

To add a row, keep to three rules; tests check the first two:

- `needle` is a lower-case literal that every match of the pattern contains in lower case. Of
  several, separated by `|`, every match contains one; of sets joined by `&`, one of each;
- every needle contains one of `ROOTS`, so that blocks of ordinary lines are skipped unread;
- the first signature that matches a line wins. Look-alikes come first; otherwise the more specific
  row precedes the more general one. `SIGNATURES` gives the order of the groups.

The monitor inside a job has its own short list (`oomguard_monitor.oom`), since it imports nothing
of oomguard.
"""

# ruff: noqa: E501, S108 -- a row of the table is one line; /dev/shm stands in a pattern
from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from oomguard.evidence.verdict import Kind, Phase


class Reading(str, Enum):
    """What a match means."""

    SHORTAGE = "shortage"  # strong: an OOM, without further evidence
    MASKED = "masked"  # weak: often a symptom of an OOM; proves nothing alone
    KILLED = "killed"  # weak: SIGKILL, for which memory is one of several reasons
    LOOK_ALIKE = "look-alike"  # mentions memory or a resource, but is not an OOM
    ERROR = "error"  # a failure that is not of memory
    SYMPTOM = "symptom"  # what other processes print after the root cause
    WRAPPER = "wrapper"  # a launcher or loader repeats that a process below it failed
    TEARDOWN = "teardown"  # noise of exiting processes
    INTERRUPTED = "interrupted"  # a scheduler ended the job, for a reason of its own
    HANDLED = "handled"  # the program caught an OOM and continues
    COMPLETED = "completed"  # training finished


class Figures(Enum):
    """Which sizes the message states, and so which continuation lines to wait for."""

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
    needles: tuple[tuple[str, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sets = tuple(tuple(literals.split("|")) for literals in self.needle.split("&"))
        object.__setattr__(self, "needles", sets)

    def may_match(self, lowered: str) -> bool:
        """Return whether a lower-case text contains the needles."""
        for literals in self.needles:
            for literal in literals:
                if literal in lowered:
                    break
            else:
                return False
        return True

    @property
    def strong(self) -> bool:
        """Return whether a match is enough by itself."""
        return self.reading not in (Reading.MASKED, Reading.KILLED)


ROOTS = (
    b"memory", b"alloc", b"oom", b"kill", b"error", b"exception", b"interrupt", b"exit", b"signal",
    b"fault", b"abort", b"cuda failure", b"_status_", b"resource", b"no space left",
    b"train_runtime", b"training", b"trainer.fit", b"watchdog", b"batch size", b"abruptly",
    b"out_of_me", b"unexpectedly", b"rc=", b"paging file", b"available ram", b"caller indicates", b"zero-fill",
    b"too much shared", b"tokens do not match", b"/dev/shm/", b"new thread", b"connection", b"quota exceeded",
    b"exhausted", b"evicted", b"vmrss", b"sigbus", b"bus error", b"cancelled", b"preempt", b"walltime", b"runlimit",
    b"vram", b"hbm", b"heap limit", b"max-running", b"memcreate", b"time limit", b"kv cache",
    b"t open file",
)  # fmt: skip


class TableRow(NamedTuple):
    """One line of the table; `reading` and `kind` are those of its group."""

    id: str
    needle: str
    pattern: str
    source: str
    figures: Figures = Figures.NONE
    phase: Phase = Phase.UNKNOWN


def _rows(reading: Reading, kind: Kind, *rows: TableRow) -> tuple[Signature, ...]:
    """Return the signatures of a group."""
    return tuple(
        Signature(
            id=row.id, needle=row.needle, pattern=re.compile(row.pattern), reading=reading,
            kind=kind, source=row.source, phase=row.phase, figures=row.figures,
        )
        for row in rows
    )  # fmt: skip


_ASKED, _CAPACITY, _BOTH = Figures.REQUESTED, Figures.CAPACITY, Figures.BOTH
_SIZE = r"[\d.,]+ ?(?:[KMGTPE]?i?B|[Bb]ytes)\b"

LOOK_ALIKES = _rows(
    Reading.LOOK_ALIKE, Kind.NOT_OOM,
    TableRow("triton-shared-memory", "out of resource: shared memory", r"(?i)out of resource: shared memory", "triton-lang/triton runtime/errors.py"),
    TableRow("triton-out-of-resources", "outofresources", r"\bOutOfResources\b", "triton-lang/triton runtime/errors.py"),
    TableRow("cuda-shared-limit", "too much shared", r"(?i)uses too much shared (?:data|memory)", "NVIDIA ptxas"),
    TableRow("static-tls", "cannot allocate memory in static tls", r"(?i)cannot allocate memory in static TLS block", "glibc elf/dl-reloc.c"),
    TableRow("memlock-limit", "cannot allocate memory", r"ibv_\w+.{0,80}Cannot allocate memory", "NVIDIA/nccl troubleshooting: ulimit -l"),
    TableRow("illegal-address", "illegal memory access", r"an illegal memory access was encountered", "CUDA runtime error 700"),
    TableRow("retry-not-failure", "caller indicates", r"The caller indicates that this is not a failure", "tensorflow/tensorflow bfc_allocator.cc"),
    TableRow("tcmalloc-notice", "large alloc", r"tcmalloc: large alloc \d+", "google/tcmalloc notice"),
    TableRow("cache-flush-notice", "memory pressure|allocator cache flushes", r"pytorch allocator cache flushes since last step|high memory pressure", "deepspeedai/DeepSpeed stage3.py warning"),
    TableRow("nvrm-no-memory", "nv_err_no_memory", r"\bNV_ERR_NO_MEMORY\b", "NVIDIA/open-gpu-kernel-modules: on unified memory also in runs that succeed"),
    TableRow("not-oom-killed", "oomkilled", r"(?i)\bOOMKilled[\"']?\s*[:=]\s*[\"']?false", "docker inspect"),
    TableRow("jvm-heap", "outofmemoryerror", r"java\.lang\.OutOfMemoryError", "OpenJDK: the heap that -Xmx sets"),
    TableRow("node-heap", "out of memory|heap limit", r"JavaScript heap out of memory|Reached heap limit", "nodejs/node: the heap that --max-old-space-size sets"),
    TableRow("kv-cache-share", "memory|max-running-requests|kv cache", r"No available memory for the cache blocks|(?i:KV cache is needed.{0,60}larger than the available)|larger than the maximum number of tokens that can be stored in KV cache|Free memory on device .{0,80}less than desired GPU memory utilization|Not enough memory\.? Please try (?:to increase|increasing) (?:--)?mem[-_]fraction|Please set a smaller number for `?--max-running-requests", "vllm-project/vllm, sgl-project/sglang: wants another share, not a smaller batch", phase=Phase.LOAD),
    TableRow("file-descriptors", "error", r"Error.{0,200}Too many open files|Too many open files.{0,200}[Ee]rror", "ulimit -n"),
    TableRow("port-in-use", "error", r"(?i)error.{0,250}\baddress already in use\b", "errno 98, and pytorch/pytorch TCPStore.cpp"),
    TableRow("multimodal-tokens", "image tokens do not match", r"Image features and image tokens do not match", "hiyouga/LLaMA-Factory#5964"),
)  # fmt: skip

_DEVICE = _rows(
    Reading.SHORTAGE, Kind.DEVICE_OOM,
    TableRow("torch-device-allocator", "out of memory", r"\b(?:CUDA|HIP|XPU|NPU|MLU|MUSA|PrivateUse1) out of memory\b", "pytorch/pytorch CUDACachingAllocator.cpp", figures=_BOTH),
    TableRow("torch-mps-allocator", "mps backend out of memory", r"MPS backend out of memory", "pytorch/pytorch MPSAllocator.mm", figures=_BOTH),
    TableRow("xla-space", "memory space", r"(?i)ran out of memory in memory space \w+", "openxla/xla TPU compiler", figures=_CAPACITY),
    TableRow("xla-reserve", "resource_exhausted|resource exhausted", r"(?i)resource[_ ]exhausted: .{0,80}?attempting to (?:reserve|allocate)", "openxla/xla TPU runtime", figures=_ASKED),
    TableRow("nccl-cuda", "cuda failure", r"Cuda failure (?:\d+ )?'out of memory'", "NVIDIA/nccl checks.h"),
    TableRow("cuda-host-text", "error out of memory at line", r"Error out of memory at line \d+ in file", "bitsandbytes-foundation/bitsandbytes csrc"),
    TableRow("xla-exhausted", "resource_exhausted", r"RESOURCE_EXHAUSTED: ?(?:Out of memory|OOM|[Ff]ailed to allocate|Ran out of memory|XLA:TPU.{0,60}[Rr]an out of memory|Error allocating)", "openxla/xla", figures=_ASKED),
    TableRow("tf-exhausted", "oom when allocating", r"OOM when allocating tensor", "tensorflow/tensorflow"),
    TableRow("tf-bfc-allocator", "ran out of memory trying to allocate", r"Allocator \(\w+\) ran out of memory trying to allocate", "tensorflow/tensorflow bfc_allocator.cc", figures=_ASKED),
    TableRow("onnxruntime-arena", "failed to allocate memory for requested buffer", r"Failed to allocate memory for requested buffer of size \d+", "microsoft/onnxruntime bfc_arena.cc", figures=_ASKED),
    TableRow("paddle-gpu", "out of memory error on", r"Out of memory error on (?:GPU|XPU|NPU)", "PaddlePaddle/Paddle cuda_allocator.cc", figures=_ASKED),
    TableRow("cupy-pool", "out of memory allocating", r"Out of memory allocating [\d,]+ bytes", "cupy/cupy memory.pyx", figures=_ASKED),
    TableRow("cudamalloc", "cudamalloc", r"cudaMalloc\w*(?: retry)? failed:? out of memory", "ggml-org/llama.cpp, apache/mxnet", figures=_ASKED),
    TableRow("hpu-devmem", "allocation failed", r"MODULE:PT_DEVMEM\W{1,4}Allocation failed", "Intel Gaudi PyTorch bridge", figures=_ASKED),
    TableRow("no-batch-left", "no executable batch size found", r"No executable batch size found, reached zero", "huggingface/accelerate utils/memory.py"),
    TableRow("cuda-libraries", "alloc_failed", r"\b(?:CUBLAS|CUSOLVER|CUDNN|CUSPARSE|HIPBLAS)_STATUS_ALLOC_FAILED\b|\bCUFFT_ALLOC_FAILED\b", "NVIDIA and AMD math libraries"),
)  # fmt: skip

#: Driver and runtime errors: they state no size, and pinning host memory prints the same text.
DRIVER_FORMS = _rows(
    Reading.SHORTAGE, Kind.DEVICE_OOM,
    TableRow("cuda-driver", "out of memory", r"(?i)\b(?:CUDA|HIP|NPU)(?: driver| runtime)? error(?: ?\(?2\)?)? ?: ?out of memory|CUDA failed with error out of memory|THCudaCheck FAIL .{0,200}error=2 ?: out of memory", "pytorch/pytorch c10/cuda/CUDAException.cpp"),
    TableRow("cuda-error-name", "error", r"\bCUDA_ERROR_OUT_OF_MEMORY\b|\bcudaErrorMemoryAllocation\b|\bhipErrorOutOfMemory\b|\bcuda error: ?cudaErrorMemoryAllocation", "CUDA and HIP error names"),
    TableRow("xpu-driver", "out_of_device_memory", r"\b(?:UR|ZE|PI)_(?:RESULT_)?ERROR_OUT_OF_DEVICE_MEMORY\b", "oneapi-src/unified-runtime"),
    TableRow("xpu-sycl", "out of device memory", r"(?i)allocation is out of device memory", "intel/llvm sycl runtime, IPEX"),
    TableRow("nvml-of-oom", "cudacachingallocator.cpp", r"NVML_SUCCESS == .{1,60}INTERNAL ASSERT FAILED at .{0,200}CUDACachingAllocator\.cpp", "pytorch/pytorch c10/cuda/CUDACachingAllocator.cpp: once cudaMalloc has failed it asks NVML, which a Jetson or a slice lacks (#112377, #185240)"),
    TableRow("rmm", "out_of_memory", r"rmm::out_of_memory|bad_alloc: out_of_memory", "rapidsai/rmm"),
    TableRow("torch-device-type", "outofmemoryerror", r"\b(?:torch(?:\.cuda)?|cupy\.cuda\.memory)\.OutOfMemoryError\b", "pytorch/pytorch exception type", figures=_BOTH),
)  # fmt: skip

_PINNED = _rows(
    Reading.SHORTAGE, Kind.PINNED_OOM,
    TableRow("pinned-alloc", "hostalloc", r"(?i)\b(?:cuda|cuMem)HostAlloc\b.{0,80}(?:out of memory|failed|error|OUT_OF_MEMORY)", "CUDA page-locked host memory"),
    TableRow("pinned-malloc", "allochost", r"(?i)\b(?:cudaMalloc|cuMemAlloc)Host\b.{0,80}(?:out of memory|failed|error|OUT_OF_MEMORY)", "CUDA page-locked host memory"),
    TableRow("pinned-hip", "hostmalloc", r"(?i)\bhipHostMalloc\b.{0,80}(?:out of memory|failed|error|OutOfMemory)", "HIP page-locked host memory"),
    TableRow("pinned-host", "alloc", r"(?:failed to alloc(?:ate)?|could not allocate)\b.{0,60}(?:bytes on host|pinned host memory)", "tensorflow/tensorflow cuda_driver.cc", figures=_ASKED),
    TableRow("pinned-register", "out of memory", r"(?i)cuda_?host_?register.{0,60}out of memory", "CUDA page-locked host memory"),
)  # fmt: skip

_SHM = _rows(
    Reading.SHORTAGE, Kind.SHM_OOM,
    TableRow("dataloader-bus-error", "shared memory|bus error", r"workers are out of shared memory|bus error encountered in worker|insufficient shared memory \(shm\)", "pytorch/pytorch torch/utils/data/_utils/signal_handling.py"),
    TableRow("nccl-shm-fallocate", "fallocate", r"posix_fallocate failed\s*: ?No space left", "NVIDIA/nccl shmutils.cc"),
    TableRow("nccl-shm", "/dev/shm/", r"failed to extend /dev/shm/\S+ to \d+ bytes", "NVIDIA/nccl shmutils.cc", figures=_ASKED),
    TableRow("nccl-shm-segment", "shared memory segment", r"Error while (?:creating|attaching to) shared memory segment /dev/shm/", "NVIDIA/nccl shmutils.cc"),
    TableRow("torch-shm-file", "no space left", r"unable to (?:write to file|mmap|resize|allocate|open)\b.{0,120}</?(?:torch|psm|mp)[_-].{0,120}No space left on device", "pytorch/pytorch MapAllocator.cpp"),
    TableRow("torch-shm-map", "cannot allocate memory", r"unable to mmap \d+ bytes from file </?(?:torch|psm|mp)[_-].{0,120}Cannot allocate memory", "pytorch/pytorch MapAllocator.cpp", figures=_ASKED),
    TableRow("shm-full", "no space left", r"/dev/shm\b.{0,200}No space left on device|No space left on device.{0,100}(?:/dev/shm|'/psm_)", "tmpfs: ENOSPC on /dev/shm"),
    TableRow("shm-resize", "shared memory segment", r"could not resize shared memory segment.{0,200}No space left", "POSIX shared memory"),
)  # fmt: skip

_KERNEL_TEXT = _rows(
    Reading.SHORTAGE, Kind.HOST_OOM,
    TableRow("kernel-oom-killer", "oom", r"\binvoked oom-killer\b|\boom-kill:(?:constraint=|\S*\.\.\.)|\boom_reaper: reaped process", "Linux mm/oom_kill.c"),
    TableRow("kernel-killed", "out of memory: kill", r"(?i)out of memory: kill(?:ed)? process", "Linux mm/oom_kill.c"),
    TableRow("slurm-oom-kill", "oom", r"Detected \d+ oom[-_]kill event|tasks? have been OOM Killed", "SchedMD/slurm task/cgroup"),
    TableRow("slurm-state", "out_of_me", r"\bOUT_OF_ME(?:\+|MORY)", "SchedMD/slurm sacct states"),
    TableRow("slurm-cgroup", "out-of-memory handler", r"(?:may )?(?:have been )?killed by the cgroup out-of-memory handler", "SchedMD/slurm task/cgroup"),
    TableRow("slurm-limit", "memory limit", r"[Ee]xceeded (?:job|step) memory limit|exceeded memory limit \(\d+ > \d+\)", "SchedMD/slurm jobacct_gather"),
    TableRow("batch-limit", "kill", r"TERM_MEMLIMIT: job killed|PBS: job killed: (?:mem|vmem) ", "IBM LSF, OpenPBS"),
    TableRow("systemd-oom", "oom", r"[Ff]ailed with result 'oom-kill'|has been killed by the OOM killer|systemd-oomd killed", "systemd"),
    TableRow("kubernetes", "oomkilled", r"\bOOMKilled\b", "kubernetes container state"),
    TableRow("colab", "available ram", r"session crashed after using all available RAM", "Google Colab kernel memory limit"),
    TableRow("ray-task", "outofmemoryerror", r"ray\.exceptions\.OutOfMemoryError", "ray-project/ray memory monitor", figures=_CAPACITY),
    TableRow("ray-monitor", "low on memory", r"killed due to the node running low on memory", "ray-project/ray memory monitor", figures=_CAPACITY),
    TableRow("dask-nanny", "memory budget", r"[Ww]orker exceeded \d+% memory budget", "dask/distributed nanny"),
)  # fmt: skip

_HOST = _rows(
    Reading.SHORTAGE, Kind.HOST_OOM,
    TableRow("torch-cpu-allocator", "alloc", r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|not enough memory: you tried to allocate", "pytorch/pytorch c10/core/impl/alloc_cpu.cpp", figures=_ASKED),
    TableRow("numpy", "unable to alloc", r"Unable to allocate " + _SIZE, "numpy/numpy _ArrayMemoryError", figures=_ASKED),
    TableRow("arrow", "alloc of size", r"\b(?:m|re)alloc of size \d+ failed", "apache/arrow memory_pool.cc", figures=_ASKED),
    TableRow("rust", "memory allocation of", r"memory allocation of \d+ bytes failed", "rust-lang/rust alloc (tokenizers, safetensors)", figures=_ASKED),
    TableRow("torch-mmap", "cannot allocate memory", r"unable to mmap \d+ bytes from file.{0,400}Cannot allocate memory", "pytorch/pytorch MapAllocator.cpp", figures=_ASKED),
    TableRow("windows-paging", "paging file", r"The paging file is too small for this operation", "Windows error 1455"),
    TableRow("loader-zero-fill", "zero-fill", r"cannot map zero-fill pages", "glibc elf/dl-map-segments.h"),
    TableRow("bad-alloc", "bad_alloc", r"\bstd::bad_alloc\b", "C++ operator new"),
    TableRow("enomem", "cannot allocate memory", r"\b[Cc]annot allocate memory\b", "errno 12"),
    TableRow("python-memory-error", "memoryerror", r"(?:^|[\s.(])MemoryError\s*(?::|\(|$)", "CPython MemoryError"),
)  # fmt: skip

_MASKED = _rows(
    Reading.MASKED, Kind.DEVICE_OOM,
    TableRow("tf-pool-growth", "failed to alloc", r"failed to alloc(?:ate)? .{0,60}from device: CUDA_ERROR_OUT_OF_MEMORY", "tensorflow/tensorflow: retries with less", figures=_ASKED),
    TableRow("cuda-libraries-masked", "_status_", r"\bCUBLAS_STATUS_NOT_INITIALIZED\b|\bCUSOLVER_STATUS_INTERNAL_ERROR\b|\bCUDNN_STATUS_(?:NOT_INITIALIZED|INTERNAL_ERROR|NOT_SUPPORTED)\b", "NVIDIA math libraries"),
    TableRow("thread-start", "new thread", r"\bcan't start new thread\b", "CPython: no room for a stack, or a limit on threads"),
    TableRow("pinned-fallback", "pinned memory", r"failed to allocate .{0,40}of pinned memory", "ggml-org/llama.cpp: falls back to pageable"),
)  # fmt: skip

_KILLED = _rows(
    Reading.KILLED, Kind.HOST_OOM,
    TableRow("dataloader-killed", "killed by signal", r"DataLoader worker \(pid\W*[\d, ]+\) is killed by signal: Killed", "pytorch/pytorch torch/utils/data"),
    TableRow("map-child-died", "abruptly died", r"subprocesses has abruptly died", "huggingface/datasets py_utils.py", phase=Phase.PREPROCESS),
    TableRow("pool-child-died", "terminated abruptly", r"process pool was terminated abruptly", "CPython concurrent.futures"),
    TableRow("torchrun-sigkill", "exitcode", r"exitcode\s*: ?(?:-9|137|247)\b", "pytorch/pytorch elastic"),
    TableRow("torchrun-signal-9", "signal", r"\bSignal 9 \(SIGKILL\) received\b", "pytorch/pytorch elastic"),
    TableRow("subprocess-sigkill", "signal", r"died with <Signals\.SIGKILL: 9>", "CPython subprocess"),
    TableRow("exit-status-sigkill", "exit", r"(?i)\bexit(?:s|ed)?(?: with)?(?: return)?(?: code| status)?(?: was| of)?\s*[:=]?\s*(?:-9|137)\b", "launchers: 128 + 9"),
    TableRow("launcher-sigkill", "exits with return code", r"exits with return code = (?:-9|247)\b", "deepspeedai/DeepSpeed launcher"),
    TableRow("status-sigkill", "exit status", r"returned non-zero exit status (?:-9|137|247)\b", "CPython subprocess"),
    TableRow("mpi-signal-9", "signal 9", r"exited on signal 9\b|terminated by signal 9\b", "Open MPI"),
    TableRow("worker-sigkill", "sigkill", r"\bwas sent SIGKILL", "benoitc/gunicorn"),
    TableRow("shell-killed", "kill", r"(?:^|: )line \d+:\s+\d+ Killed\b|^Killed$|\btask \d+: Killed\b", "bash, srun"),
)  # fmt: skip

#: Exception types by their names, in any framework's spelling and inside brackets.
_OOM_NAME = r"(?:Out_?Of_?(?:\w{0,12}_?)?Memory|OOM|Oom)(?:Error|Exception|Fault)?"
#: A type is reported where a message follows it, where it ends the line or heads a notebook's traceback.
_TYPE_END = r"(?=\s*(?::|$|\)|'|\[)|\s{2,}Traceback \(most recent)"
_TYPES = (
    *_rows(
        Reading.SHORTAGE, Kind.DEVICE_OOM,
        TableRow("type-device", "memory|oom&outof|out_of|oomerror|oomexception|oomfault|memory", r"(?:^|[\s('\"<\[:])(?:[A-Za-z_]\w{0,60}(?:\.|::)){0,8}(?:\w{0,40}?)" + _OOM_NAME.replace("|OOM|Oom)", "|OOM(?=E)|Oom(?=E))") + _TYPE_END, "any framework: the type says that memory ran out; torch's is bare in notebooks", figures=_BOTH),
        TableRow("type-device-memory", "error|exception&mem", r"(?:^|[\s('\"<\[:.])(?:\w{0,40}(?:Gpu|GPU|Cuda|CUDA|Device|Hip|HIP|Npu|NPU|Xpu|Vram|VRAM)\w{0,40}Mem(?:ory)?(?:Alloc\w{0,40}|Exhausted|Limit\w{0,40})?(?:Error|Exception))" + _TYPE_END, "any framework", figures=_BOTH),
    ),
    *_rows(
        Reading.SHORTAGE, Kind.HOST_OOM,
        TableRow("type-host", "memory&error|exception|memory", r"(?:^|[\s('\"<\[:.])(?:\w{0,40}(?:Insufficient|NotEnough|No|Low)(?:Host)?Memory\w{0,40}(?:Error|Exception)?|\w{0,40}Memory(?:Exhausted|LimitExceeded|Allocation|Quota\w{0,40})(?:Error|Exception)|(?!Shared|Gpu|Cuda|Device)[A-Za-z]{0,40}_?(?:Array|Arrow|Buffer|Heap|Host|Numpy|Polars|Duck\w{0,40})Memory(?:Error|Exception))" + _TYPE_END, "any library: the type says that memory ran out", figures=_ASKED),
    ),
)  # fmt: skip

_DEVICE_WORDS = r"(?:gpu|device|cuda|hip|npu|xpu|mps|metal|graphics|video|accelerator|vram|hbm|tpu)"
_HOST_WORDS = r"(?:host|system|cpu|main|physical|virtual)"
_NONE_LEFT = r"(?:ran |runs |running |is |went |goes )?(?:out of|insufficient|not enough|no(?:t any)? more|exhausted|lack of|no free)"
_KILLERS = r"\b(?:killed|killing|kills|terminated|terminating|evicted|evicting|sacrificed|reaped|sending SIG(?:TERM|KILL)|SIGKILLed)\b"
_SHORT = r"(?:\bout[- ]of[- ]memory\b|\bOOM\b|\boom[-_ ]kill\w*|\bmemory (?:pressure|limits?|usage|used|quota|budget|threshold|exhaust\w+)\b|\blow(?:ing)? (?:on )?memory\b|\bresource: memory\b|\bexceed\w*\b.{0,30}\bmemory\b|\bVmRSS\b)"
_NO_ADVICE = r"(?:(?!\b(?:avoid|prevent|if|when|unless|may|might|could)\b).)"
#: What happened, by classes of words: whoever says it, in whatever sentence.
_CLASSES = (
    *_rows(
        Reading.SHORTAGE, Kind.SHM_OOM,
        TableRow("worker-bus-error", "bus error|sigbus&loader|worker", r"(?i)\b(?:data ?)?(?:loader|worker)\w*\b.{0,120}\b(?:bus error|SIGBUS)\b|\b(?:bus error|SIGBUS)\b.{0,80}\bworker\w*\b", "a worker whose page of shared memory is not there"),
    ),
    *_rows(
        Reading.SHORTAGE, Kind.DEVICE_OOM,
        TableRow("device-words", "gpu|device|cuda|hip|npu|xpu|mps|metal|graphics|video|accelerator|vram|hbm|tpu&out of|insufficient|not enough|more|exhausted|lack of|no free|oom", r"(?i)\b" + _NONE_LEFT + r" (?:available |free |the )?(?:" + _DEVICE_WORDS + r"[ -]memory|vram|hbm)\b|\b" + _DEVICE_WORDS + r"(?:[ -]memory)?(?: is| was| has| backend| allocator)?(?: ran| run)? (?:exhausted|out of memory|OOM(?:ed)?)\b", "any program: a device and that its memory is used up", figures=_BOTH),
        TableRow("device-malloc", "malloc|memalloc|memcreate&fail|error|out of memory", r"(?i)\b(?:cuda|cu|hip|musa|aclrt|rt|cn|tops|ze|ur|drv|hal|NvMap)\w*(?:Malloc|MemAlloc|MemCreate)(?!\w*host)\w*\b.{0,80}\b(?:fail\w*|error|out of memory)", "runtimes of CUDA, HIP, Ascend, MUSA, Cambricon, Level Zero, Jetson", figures=_ASKED),
        TableRow("exhausted-resources", "exhausted", r"(?i)\bresource[s_ ]*(?:\w+ )?exhausted(?:error)?\b(?!.{0,200}\b(?:quota|disk|message|request|rate|file|connection|grpc|retr)\w*).{0,200}(?:memory|allocat|\bOOM\b|\breserve\b|\bhbm\b)", "openxla/xla, tensorflow: by its words a device's memory", figures=_BOTH),
    ),
    *_rows(
        Reading.SHORTAGE, Kind.HOST_OOM,
        TableRow("killer-words", "memory|oom|vmrss&kill|terminat|evict|sacrific|reap|sigterm", r"(?i)" + _KILLERS + _NO_ADVICE + r"{0,120}?" + _SHORT + r"|" + _SHORT + _NO_ADVICE + r"{0,80}?" + _KILLERS, "any killer: its verb with a noun of memory"),
        TableRow("slurm-task-oom", "out of memory", r"srun: error: .{0,80}: Out Of Memory", "SchedMD/slurm srun"),
        TableRow("evicted", "resource: memory|memory limit of", r"low on resource: memory|Memory limit of (?:pod|container).{0,60}exceeded", "kubernetes eviction"),
        TableRow("host-words", "memory&out of|insufficient|not enough|more|exhausted|lack of|no free", r"(?i)\b" + _NONE_LEFT + r" (?:available |free |the )?" + _HOST_WORDS + r" memory\b|(?:error|fatal|failed|exception)\b.{0,40}\b(?:insufficient|not enough) memory\b", "any program: the host and that its memory is used up", figures=_ASKED),
    ),
)  # fmt: skip

_INTERRUPTED = _rows(
    Reading.INTERRUPTED, Kind.INTERRUPTED,
    TableRow("slurm-ended", "cancelled", r"\bCANCELLED\b.{0,80}\bDUE TO (?:TIME LIMIT|PREEMPTION|JOB REQUEUE|NODE FAILURE|SIGNAL)|\bCANCELLED\+? +by \d+", "SchedMD/slurm slurmstepd, sacct"),
    TableRow("scheduler-limit", "runlimit|walltime|time limit", r"TERM_RUNLIMIT|(?i:walltime \d+ exceeded)|(?i:job (?:was )?(?:killed|cancelled|terminated).{0,40}(?:walltime|time limit))|(?i:exceeded (?:its )?(?:walltime|time limit))", "IBM LSF, OpenPBS"),
    TableRow("preempted", "preempt", r"(?i)\b(?:job|node|instance|task|vm|pod|worker)s? (?:is|was|has been|were|got|being) preempted\b|received preemption notice|\bPREEMPTED\b", "schedulers and spot instances"),
    TableRow("slurm-cancelled", "cancelled", r"\b(?:JOB|STEP) \S+ ON \S+ CANCELLED\b", "SchedMD/slurm: scancel, or after a task failed"),
)  # fmt: skip

_NOISE = (
    *_rows(
        Reading.HANDLED, Kind.OK,
        TableRow("caught", "oom", r"(?i)attempting to recover from OOM|OOM in all workers|(?:caught|catching|recover(?:ed|ing)? from|skip(?:ped|ping)?\b.{0,40}\b(?:due to|because of|after)) (?:an? )?(?:\w+ )?OOM|\bOOM\b.{0,60}\b(?:skipp(?:ed|ing)|retrying|recovered|continuing)\b", "facebookresearch/fairseq, OpenNMT"),
        TableRow("retried", "out of memory", r"(?i)(?:ran )?out of memory\b.{0,100}\b(?:skipping|retrying|will retry|recovering|continuing|ignoring this choice|falling back)\b", "facebookresearch/fairseq, comfyanonymous/ComfyUI, pytorch inductor"),
        TableRow("skipped-memory", "out of memory", r"(?i)\b(?:skipp(?:ed|ing)|ignor(?:ed|ing)|retrying|recovered|recovering)\b.{0,80}(?:due to|because of|after|from)\b.{0,30}out of memory", "training loops that go on"),
        TableRow("batch-decreased", "batch size", r"(?i)decreasing batch size to:? ?\d+|Batch size \d+ failed, trying batch size \d+", "huggingface/accelerate, Lightning-AI/pytorch-lightning"),
    ),
    *_rows(
        Reading.COMPLETED, Kind.OK,
        TableRow("train-runtime", "train_runtime", r"\btrain_runtime\b[\"']?\s*[:=]", "huggingface/transformers Trainer"),
        TableRow("training-completed", "training", r"(?i)\btraining progress:? *100%|\btraining (?:is |was |has )?(?:been )?(?:completed|complete|finished|done)\b(?! (?:with errors|in part))|\bfinished training\b|\bTraining time: [\d.]+s", "training loops"),
        TableRow("fit-stopped", "trainer.fit", r"Trainer\.fit` stopped: `max_(?:epochs|steps)=\d+` reached", "Lightning-AI/pytorch-lightning"),
    ),
    *_rows(
        Reading.TEARDOWN, Kind.NOT_OOM,
        TableRow("resource-tracker", "resource_tracker", r"\bresource_tracker\b", "CPython multiprocessing"),
        TableRow("tracker-key", "error", r"^KeyError: '/(?:psm|mp|loky)[-_]", "CPython multiprocessing.resource_tracker"),
        TableRow("died-unexpectedly", "unexpectedly", r"\bdied unexpectedly\b", "servers whose children end"),
    ),
    *_rows(
        Reading.SYMPTOM, Kind.NOT_OOM,
        TableRow("nccl-watchdog", "watchdog", r"Watchdog caught collective operation timeout|watchdog thread terminated", "pytorch/pytorch ProcessGroupNCCL.cpp"),
        TableRow("peer-gone", "error|connection|ncclremote", r"\b(?:ConnectionResetError|BrokenPipeError|EOFError|ConnectionRefusedError)\b|Connection (?:closed by|reset by) peer|ncclRemoteError", "the peer of a process that ended"),
        TableRow("collective-failed", "error", r"\bDistBackendError\b|\bncclSystemError\b|\bDistNetworkError\b|\bDistStoreError\b", "pytorch/pytorch c10d"),
        TableRow("dataloader-exited", "exited unexpectedly", r"DataLoader worker \(pid.{0,60}exited unexpectedly", "pytorch/pytorch torch/utils/data"),
    ),
    *_rows(
        Reading.WRAPPER, Kind.NOT_OOM,
        TableRow("child-failed", "error|exception", r"\bChildFailedError\b|\bCalledProcessError\b|\bProcessRaisedException\b|\bProcessExitedException\b", "pytorch/pytorch elastic, CPython subprocess"),
        TableRow("launcher-exit", "exit", r"failed \(exitcode: -?\d+\)|exitcode\s*: ?-?\d+|exits with return code = -?[1-9]|non-zero exit (?:status|code)", "launchers"),
        TableRow("launcher-rc", "rc=", r"\brc=-?[1-9]\d*\b", "scripts"),
        TableRow("weights-not-converted", "error: we encountered some issues during automatic conversion", r"Error: We encountered some issues during automatic conversion of the weights", "huggingface/transformers 5 utils/loading_report.py: prints what each weight failed of, then this"),
    ),
    *_rows(
        Reading.ERROR, Kind.NOT_OOM,
        TableRow("disk-full", "no space left|quota exceeded", r"No space left on device|Disk quota exceeded", "errno 28"),
        TableRow("crash-signal", "signal", r"\bSignal (?:11|6|4|8|7) \(SIG\w+\) received\b|caught signal \d+|got signal: \d+", "pytorch/pytorch elastic, Open MPI"),
        TableRow("timed-out", "exitcode", r"exitcode\s*: ?124\b", "coreutils timeout"),
        TableRow("crash", "fault", r"\bSegmentation fault\b", "the process itself"),
        TableRow("crash-python", "fatal python error", r"\bFatal Python error\b", "CPython"),
        TableRow("abort", "abort", r"\bAborted \((?:core dumped|signal 6)\)", "abort(3)"),
        TableRow("usage", "error: ", r"^(?:[\w./-]+(?: [\w-]+)?: )?error: ", "CPython argparse, jsonargparse"),
        TableRow("no-such-script", "can't open file", r"\bcan't open file '.{1,500}': \[Errno \d+\]", "CPython Modules/main.c"),
        TableRow("python-interrupt", "interrupt", r"^KeyboardInterrupt\b", "CPython"),
        TableRow("python-exception", "error", r"^(?:[\w.]+\.)?[A-Z_]\w*Error\b(?::| ?$)", "CPython traceback"),
        TableRow("python-other-exception", "exception", r"^(?:[\w.]+\.)?[A-Z_]?\w*Exception\b(?::| ?$)", "CPython traceback"),
        TableRow("nccl-cuda-other", "cuda failure", r"Cuda failure (?:\d+ )?'(?!out of memory)", "NVIDIA/nccl checks.h"),
        TableRow("logged-error", "error", r"(?i)\berror (?:during|while) (?:training|evaluat\w+|loading|saving|running)\b", "training scripts that log what they caught"),
        TableRow("cuda-other", "error", r"\bCUDA error: \w", "CUDA runtime"),
    ),
)  # fmt: skip

SIGNATURES: tuple[Signature, ...] = (
    *LOOK_ALIKES, *_NOISE[:4], *_MASKED[:1], *_PINNED, *_SHM, *_DEVICE, *DRIVER_FORMS,
    *_MASKED[1:], *_KERNEL_TEXT, *_HOST, *_CLASSES, *_TYPES, *_INTERRUPTED, *_KILLED, *_NOISE[4:],
)  # fmt: skip
BY_ID = {signature.id: signature for signature in SIGNATURES}
#: Look-alikes that are warnings: the program continues after them.
NOTICES = frozenset(
    {
        "retry-not-failure",
        "tcmalloc-notice",
        "cache-flush-notice",
        "not-oom-killed",
        "nvrm-no-memory",
    }
)
#: Signatures that explain no failure.
HARMLESS = NOTICES | {s.id for s in SIGNATURES if s.reading is Reading.COMPLETED}

#: Before a match: the sentence is about OOMs in general and reports none.
ADVICE = re.compile(
    r"(?i)\b(?:if|avoid\w*|prevent\w*|may|might|could|in case|whenever|when you|would|to fix|helps?|"
    r"reduces?|without|instead of|no longer|never|not|handl\w+|detect\w*|against|such as|like|e\.g\.|"
    r"cause[sd]?|lead(?:s|ing)? to|get(?:ting)?|see(?:ing)?|face|facing|encounter)\b[^.:]{0,60}$"
)
#: The same after a match: "... errors", "...`: reduce the batch size".
ADVICE_AFTER = re.compile(
    r"(?i)^['\"`*]*,?\s*(?:errors\b|issues?\b|problems?\b|exceptions\b|handling\b)"
    r"|^[`*]+\s*[:|]|^['\"`*]*[:.,;|]?\s*(?:->|=>|try|reduce|lower|decrease|use|set|consider)\b"
)
#: How exceptions are printed: what follows is a report.
REPORTED = re.compile(r"(?:Error|Exception|ERROR|FATAL)\b[^:]{0,40}:\s*(?:\[[^\]]{0,60}\]\s*)?$")
#: Source code as tracebacks, diffs and config dumps show it.
CODE = re.compile(
    r"^\s*(?:[-+] ?)?(?:except|raise|if|elif|assert|return|def|class|import|from|with|print|log(?:ger|ging)?\.)\b"
    r"|\bin str\(|\bin repr\(|^\s*#.*\bexcept\b"
)
