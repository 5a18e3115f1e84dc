"""Single messages as real programs print them; sizes are exact."""

# ruff: noqa: E501 -- messages are quoted as they are printed
from __future__ import annotations

import pytest

from expand import texts_of
from oomguard.evidence.judge import judge_log
from oomguard.evidence.log import classify
from oomguard.evidence.match import match_line
from oomguard.evidence.signatures import BY_ID, ROOTS, SIGNATURES, Signature
from oomguard.evidence.verdict import Cause, Kind

D, H, S, P, N = Kind.DEVICE_OOM, Kind.HOST_OOM, Kind.SHM_OOM, Kind.PINNED_OOM, Kind.NOT_OOM
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SHORTAGES = [
    ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 23.69 GiB total capacity; 20.12 GiB already allocated; 1.02 GiB free; 21.50 GiB reserved in total by PyTorch)", D, 2 * GIB, round(23.69 * GIB)),
    ("RuntimeError: CUDA out of memory. Tried to allocate 512.00 KiB (GPU 3; 10.76 GiB total capacity; 9.90 GiB already allocated; 256.00 KiB free; 9.95 GiB reserved in total by PyTorch)", D, 512 * KIB, round(10.76 * GIB)),
    ("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.25 GiB. GPU 0 has a total capacity of 63.98 GiB of which 512.00 MiB is free.", D, round(1.25 * GIB), round(63.98 * GIB)),
    ("torch.OutOfMemoryError: XPU out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 15.91 GiB.", D, 4 * GIB, round(15.91 * GIB)),
    ("RuntimeError: NPU out of memory. Tried to allocate 198.00 MiB (NPU 4; 60.97 GiB total capacity; 58.31 GiB already allocated)", D, 198 * MIB, round(60.97 * GIB)),
    ("RuntimeError: MPS backend out of memory (MPS allocated: 17.54 GB, other allocations: 384.00 KB, max allowed: 18.13 GB). Tried to allocate 1024.00 MB on private pool.", D, GIB, round(18.13 * GIB)),
    ("torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory) Currently allocated : 22.17 GiB Requested : 1.50 GiB Device limit : 23.99 GiB Free (according to CUDA): 0 bytes", D, round(1.5 * GIB), round(23.99 * GIB)),
    ("RuntimeError: CUDA error: out of memory", D, None, None),
    ("torch.AcceleratorError: CUDA error: out of memory", D, None, None),
    ("RuntimeError: CUDA driver error: out of memory", D, None, None),
    ("RuntimeError: cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THCStorage.cu:58", D, None, None),
    ("RuntimeError: CUDA failed with error out of memory", D, None, None),
    ("RuntimeError: HIP error: out of memory", D, None, None),
    ("numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY", D, None, None),
    ("hipErrorOutOfMemory: hipMalloc failed", D, None, None),
    ("RuntimeError: Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", D, None, None),
    ("ncclUnhandledCudaError: Call to CUDA function failed. Last error: Cuda failure 'out of memory'", D, None, None),
    ("node1:412:455 [1] enqueue.cc:1125 NCCL WARN Cuda failure 2 'out of memory'", D, None, None),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", D, None, None),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", D, None, None),
    ("RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`", D, None, None),
    ("RuntimeError: cuFFT error: CUFFT_ALLOC_FAILED", D, None, None),
    ("RuntimeError: [Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB", D, 268435456, None),
    ("jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.", D, 17179869184, None),
    ("XlaRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.56G of 15.48G hbm.", D, None, round(15.48 * GIB)),
    ("tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating tensor with shape[64,128,768] and type float", D, None, None),
    ("W tensorflow/core/common_runtime/bfc_allocator.cc:479] Allocator (GPU_0_bfc) ran out of memory trying to allocate 256.00MiB (rounded to 268435456)requested by op", D, 256 * MIB, None),
    ("onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 1073741824", D, 1073741824, None),
    ("Out of memory error on GPU 0. Cannot allocate 1.400000GB memory on GPU 0, 10.7GB memory has been allocated", D, round(1.4 * GIB), None),
    ("cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 1,073,741,824 bytes (allocated so far: 512 bytes).", D, 1073741824, None),
    ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 5120.00 MiB on device 0: cudaMalloc failed: out of memory", D, 5120 * MIB, None),
    ("MemoryError: std::bad_alloc: out_of_memory: CUDA error at: /include/rmm/mr/device/cuda_memory_resource.hpp:70: cudaErrorMemoryAllocation out of memory", D, None, None),
    ("RuntimeError: No executable batch size found, reached zero.", D, None, None),
    ("Error out of memory at line 380 in file /src/csrc/pythonInterface.c", D, None, None),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)", H, 4294967296, None),
    ("RuntimeError: [enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough memory: you tried to allocate 94371840 bytes.", H, 94371840, None),
    ("numpy.core._exceptions.MemoryError: Unable to allocate 14.2 GiB for an array with shape (1000, 1906624) and data type float64", H, round(14.2 * GIB), None),
    ("MemoryError", H, None, None),
    ("numpy.core._exceptions.MemoryError: Unable to allocate 926. GiB for an array", H, 926 * GIB, None),
    ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacty of 6.00 GiB", D, 3 * GIB // 2, 6 * GIB),
    ("MemoryError: Unable to allocate internal buffer.", H, None, None),
    ("OSError: [Errno 12] Cannot allocate memory", H, None, None),
    ("RuntimeError: unable to mmap 4976706897 bytes from file <model-00001.safetensors>: Cannot allocate memory (12)", H, 4976706897, None),
    ("memory allocation of 1610612736 bytes failed", H, 1610612736, None),
    ("pyarrow.lib.ArrowMemoryError: malloc of size 134217728 failed", H, 134217728, None),
    ("OSError: The paging file is too small for this operation to complete. (os error 1455)", H, None, None),
    ("terminate called after throwing an instance of 'std::bad_alloc'", H, None, None),
    ("libtorch_cpu.so: cannot map zero-fill pages", H, None, None),
    ("bash: fork: Cannot allocate memory", H, None, None),
    ("[337533.314412] Memory cgroup out of memory: Killed process 23793 (python) total-vm:2623712kB, anon-rss:506500kB", H, None, None),
    ("[ 9120.1] Out of memory: Kill process 1234 (python3) score 900 or sacrifice child", H, None, None),
    ("kernel: oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task=python", H, None, None),
    ("slurmstepd: error: Detected 3 oom-kill event(s) in StepId=91.0. Some of your processes may have been killed by the cgroup out-of-memory handler.", H, None, None),
    ("slurmstepd: error: Job 811 exceeded memory limit (10539012 > 8192000), being killed", H, None, None),
    ("      Reason:       OOMKilled", H, None, None),
    ("train.service: Failed with result 'oom-kill'.", H, None, None),
    ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.", H, None, None),
    ("distributed.nanny - WARNING - Worker exceeded 95% memory budget. Restarting", H, None, None),
    ("(raylet) 2 Workers (tasks / actors) killed due to memory pressure; worker(s) were killed due to the node running low on memory", H, None, None),
    ("RuntimeError: DataLoader worker (pid 411) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory. Please try to raise your shared memory limit.", S, None, None),
    ("ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).", S, None, None),
    ("RuntimeError: unable to write to file </torch_287_2714559211_8>: No space left on device (28)", S, None, None),
    ("n1:1:1 [0] misc/shmutils.cc:72 NCCL WARN Error: failed to extend /dev/shm/nccl-4GsJ2M to 5767524 bytes", S, 5767524, None),
    ("OSError: [Errno 28] No space left on device: '/dev/shm/loky-1-abc'", S, None, None),
    ("failed to alloc 17179869184 bytes on host: CUDA_ERROR_OUT_OF_MEMORY: out of memory", P, 17179869184, None),
    ("could not allocate pinned host memory of size: 2304", P, 2304, None),
    ("RuntimeError: cudaHostAlloc failed: out of memory", P, None, None),
    ("cudaMallocHost failed: out of memory", P, None, None),
    ("hipHostMalloc: hipErrorOutOfMemory", P, None, None),
    ("RuntimeError: cudaHostRegister: CUDA error: out of memory", P, None, None),
    ("misc/shmutils.cc:87 NCCL WARN Call to posix_fallocate failed : No space left on device", S, None, None),
    ("RuntimeError: unable to mmap 1048 bytes from file </torch_1_2_3>: Cannot allocate memory (12)", S, 1048, None),
    ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", H, None, None),
    ('RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":995, please report a bug to PyTorch.', D, None, None),
    ("THCudaCheck FAIL file=/pytorch/aten/src/THC/generic/THCStorage.cu line=58 error=2 : out of memory", D, None, None),
    ("rmm::out_of_memory thrown in pool_memory_resource", D, None, None),
    ("error: Some of your processes may have been killed by the cgroup out-of-memory handler.", H, None, None),
    ("NCCL WARN Error while creating shared memory segment /dev/shm/nccl-UbzKZ9 (size 9637888)", S, None, None),
    ("A process of this unit has been killed by the OOM killer.", H, None, None),
    ("3801897  mem_test  test  rc_admin  1 OUT_OF_MEMORY    0:125", H, None, None),
    ("Your session crashed after using all available RAM.", H, None, None),
    ("could not resize shared memory segment \"/x.1\" to 8388608 bytes: No space left on device", S, None, None),
    ("RuntimeError: DataLoader worker (pid 20991) is killed by signal: Bus error. Details are lost due to multiprocessing.", S, None, None),
    ("RuntimeError: Allocation is out of device memory on current platform.", D, None, None),
    ("E0000 tpu_program: the accelerator memory is exhausted", D, None, None),
    ("mindspore: insufficient device memory, tried to allocate 1073741824 bytes", D, 1 << 30, None),
    ("EL0004: [PID: 91] Failed to allocate memory. rtMalloc execute failed, reason: memory error, size 33030528", D, 33030528, None),
    ("NvMapMemAllocInternalTagged: 1075072515 error 12", D, None, None),
    ("Bad StatusOr access: RESOURCE_EXHAUSTED: Attempting to reserve 10.51G at the bottom of memory. That was not possible.", D, round(10.51 * GIB), None),
    ("jaxlib: RESOURCE_EXHAUSTED: Attempting to allocate 176.00M (184549376B). That was not possible. There are 142.28M free.", D, 184549376, None),
    ("RuntimeError: Compilation failure: Ran out of memory in memory space vmem. Used 32.42M of 16.00M vmem. Exceeded vmem capacity by 16.42M", D, None, round(16 * MIB)),
    ("2 root error(s) found. (0) Resource exhausted: the pool of device memory cannot be extended", D, None, None),
    ("OutOfMemoryError: CUDA is busy", D, None, None),
    ("OutOfMemoryError                          Traceback (most recent call last)", D, None, None),
    ("ray.exceptions.RayTaskError(OutOfMemoryError): ray::Runner.run() (pid=104449, ip=10.0.0.7)", D, None, None),
    ("mylib.errors.GpuMemoryError: pool exhausted", D, None, None),
    ("polars.exceptions.NotEnoughMemoryError: scan needs more", H, None, None),
    ("pyarrow.lib.ArrowMemoryError: realloc of size 2172846080 failed", H, 2172846080, None),
    ("Jul 18 08:23:17 node earlyoom[2608931]: sending SIGTERM to process 2595764 uid 0 \"python\": badness 711, VmRSS 52562 MiB", H, None, None),
    ("Dec 18 19:34:56 desk systemd-oomd[840]: Killed /user.slice/job.scope due to memory pressure for /user.slice being 51.07% > 50.00% for > 20s", H, None, None),
    ("job.scope: systemd-oomd killed 12 process(es) in this unit.", H, None, None),
    ("srun: error: node12: task 3: Out Of Memory", H, None, None),
    ("Message: The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Ki.", H, None, None),
    ("fatal: not enough host memory for the copy", H, None, None),
]  # fmt: skip

NOT_SHORTAGES = [
    "If reserved memory is >> allocated memory try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.",
    "To avoid CUDA out of memory errors, reduce per_device_train_batch_size.",
    "If you get CUDA out of memory, lower the batch size.",
    "This may cause CUDA out of memory on small cards.",
    "- `CUDA out of memory`: reduce `micro_batch_size` first",
    "| `CUDA out of memory` | use a smaller batch |",
    'if "CUDA out of memory" in str(error):',
    "    except torch.cuda.OutOfMemoryError:",
    "    raise MemoryError(message)",
    "    except MemoryError as error:",
    "INFO bitsandbytes handles out of memory by paging",
    "torch.triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 196608, Hardware limit: 101376. Reducing block sizes or `num_stages` may help.",
    "ptxas error   : Entry function 'kernel' uses too much shared data (0xc800 bytes, 0xc000 max)",
    "ImportError: libgomp.so.1: cannot allocate memory in static TLS block",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "RuntimeError: CUDA error: device-side assert triggered",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "RuntimeError: CUDA error: too many resources requested for launch",
    "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "RuntimeError: can't start new thread",
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "Allocator (GPU_0_bfc) ran out of memory trying to allocate 1.17GiB. The caller indicates that this is not a failure, but may mean that there could be performance gains if more memory were available.",
    "tcmalloc: large alloc 4294967296 bytes == 0x55d2",
    "8 pytorch allocator cache flushes since last step. this happens when there is high memory pressure",
    '        "OOMKilled": false,',
    "OSError: [Errno 28] No space left on device: '/data/out/checkpoint-500/optimizer.pt'",
    "OSError: [Errno 24] Too many open files",
    "OSError: [Errno 98] Address already in use",
    "grpc._channel._InactiveRpcError: RESOURCE_EXHAUSTED: Received message larger than max (5000000 vs. 4194304)",
    "openai.RateLimitError: RESOURCE_EXHAUSTED: Quota exceeded",
    "java.lang.OutOfMemoryError: Java heap space",
    "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory",
    "tensorflow.python.framework.errors_impl.ResourceExhaustedError: disk quota exceeded [Op:SaveV2]",
    "ValueError: To serve at least one request with the model's max seq len (32768), 4.0 GiB KV cache is needed, which is larger than the available KV cache memory (2.1 GiB).",
    "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
    "multiprocessing.SharedMemoryError: no such segment",
    "Pods may be killed if they exceed the memory limit",
    "INFO the worker will be terminated to avoid running out of memory",
    "Some weights were not initialized; killing 3 stale workers; memory 22.1 GiB",
    "RuntimeError: MemoryFormat is not supported",
    "NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory",
    "RuntimeError: CUDA out of memory. Tried to allocate more than 1EB memory.",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768",
    "exitcode  : -11 (pid: 140879)",
    "subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.",
    "| Allocated memory      |   14935 MB |   15377 MB |     995 GB |     980 GB |",
    "{'loss': 1.2, 'memory/max_allocated (GiB)': 20.1, 'epoch': 0.1}",
    "ValueError: Image features and image tokens do not match: tokens: 128, features 256",
    "RuntimeError: The size of tensor a (64) must match the size of tensor b (361) at non-singleton dimension 1",
]

CAUGHT = [
    "| WARNING: ran out of memory, retrying batch",
    "WARNING: OOM in all workers, skipping update",
    "Caught OOM on batch 17, skipping",
    "Warning: Ran out of memory when regular VAE decoding, retrying with tiled VAE decoding.",
    "Decreasing batch size to: 8.",
    "Batch size 32 failed, trying batch size 16",
    "Runtime error during autotuning: CUDA out of memory. Tried to allocate 2.00 GiB. Ignoring this choice.",
    "skipped a batch because of a CUDA out of memory error",
]


@pytest.mark.parametrize(("text", "kind", "requested", "capacity"), SHORTAGES)
def test_a_shortage_is_named_with_its_sizes(
    text: str, kind: Kind, requested: int | None, capacity: int | None
) -> None:
    verdict = judge_log([text.encode() + b"\n"], 1)
    assert (verdict.kind, verdict.requested_bytes, verdict.capacity_bytes) == (
        kind,
        requested,
        capacity,
    )


@pytest.mark.parametrize("text", NOT_SHORTAGES)
@pytest.mark.parametrize("code", [1, None])
def test_what_only_looks_like_a_shortage_is_none(text: str, code: int | None) -> None:
    kind = judge_log([text.encode() + b"\n"], code).kind
    assert kind.is_other_failure or (kind is Kind.OK and code is None)


@pytest.mark.parametrize("text", CAUGHT)
def test_a_caught_shortage_is_no_failure(text: str) -> None:
    verdict = judge_log(
        [b"RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n", text.encode()], 0
    )
    assert verdict.kind is Kind.OK
    assert verdict.requested_bytes == 2 * GIB


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.id)
def test_the_prefilter_lets_every_signature_through(signature: Signature) -> None:
    texts = [text for text in texts_of(signature.pattern) if signature.pattern.search(text)]
    assert texts
    for text in texts:
        assert signature.may_match(text.lower()), text
        assert any(root in text.lower().encode() for root in ROOTS), text


def test_signature_names_are_unique() -> None:
    assert len(BY_ID) == len(SIGNATURES)


def test_the_table_is_covered_by_these_strings() -> None:
    met = {found[0].id for text, *_ in SHORTAGES if (found := match_line(text))}
    strong = {s.id for s in SIGNATURES if s.reading.value == "shortage"}
    assert strong - met == set()


CAUSES = [
    ("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 200.00 MiB is free. Including non-PyTorch memory, this process has 23.80 GiB memory in use. Of the allocated memory 19.00 GiB is allocated by PyTorch, and 4.50 GiB is reserved by PyTorch but unallocated.", Cause.FRAGMENTATION),
    ("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 200.00 MiB is free. Process 4711 has 20.10 GiB memory in use. Including non-PyTorch memory, this process has 3.50 GiB memory in use. Of the allocated memory 3.00 GiB is allocated by PyTorch, and 20.00 MiB is reserved by PyTorch but unallocated.", Cause.OTHER_PROCESS),
    ("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 200.00 MiB is free. Including non-PyTorch memory, this process has 23.80 GiB memory in use. Of the allocated memory 23.00 GiB is allocated by PyTorch, and 90.00 MiB is reserved by PyTorch but unallocated.", Cause.CAPACITY),
    ("XPU out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 31.89 GiB of which 31.82 GiB is free.", Cause.UNKNOWN),
    ("HIP out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 15.92 GiB of which 0 bytes is free.", Cause.UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cause"), CAUSES)
def test_the_sizes_tell_the_cause(text: str, cause: Cause) -> None:
    assert judge_log([text.encode()], 1).cause is cause


def test_one_message_can_be_classified_alone() -> None:
    found = classify("CUDA out of memory. Tried to allocate 2.00 MiB.")
    assert found is not None
    assert (found.kind, found.requested_bytes) == (Kind.DEVICE_OOM, 2 * MIB)
    assert classify("all is well") is None
