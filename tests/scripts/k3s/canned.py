"""What clusters say when something is wrong, in the words of those who say it.

Where each wording comes from:

- scheduler: NVIDIA/k8s-device-plugin issues 348 and 430 ("Insufficient nvidia.com/gpu")
- kubelet and containerd: the messages of `ErrImagePull` and `ImagePullBackOff` in Kubernetes' and
  containerd's sources; `kubectl get pod -o json` of the Kubernetes documentation
- ReplicaSet: NVIDIA/aicr issue 2176 ("RuntimeClass \\"nvidia\\" not found")
- vLLM: `vllm/v1/core/kv_cache_utils.py`, `vllm/config/model.py`, `vllm/v1/worker/gpu_worker.py`, and the
  logs quoted in vllm-project/vllm issues 2418 and 28051
- PyTorch's OutOfMemoryError; huggingface_hub's GatedRepoError and RepositoryNotFoundError
"""

from __future__ import annotations

from typing import Any

KV_CACHE = """\
(EngineCore pid=71) ERROR 11-20 09:12:03 [core.py:866] ValueError: To serve at least one request with the \
model's max seq len (16384), (2.25 GiB KV cache is needed, which is larger than the available KV cache memory \
(0.47 GiB). Based on the available memory, the estimated maximum model length is 3280. Try increasing \
`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine. See \
https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
KV_CACHE_TINY = KV_CACHE.replace("model length is 3280", "model length is 112")
KV_CACHE_NO_ESTIMATE = """\
ValueError: To serve at least one request with the models's max seq len (8192), (18.00 GiB KV cache is needed, \
which is larger than the available KV cache memory (4.00 GiB). Try increasing `gpu_memory_utilization`
"""
KV_CACHE_2024 = """\
ValueError: The model's max seq len (4096) is larger than the maximum number of tokens that can be stored in KV \
cache (3664). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
"""
LONGER_THAN_MODEL = """\
Value error, User-specified max_model_len (65536) is greater than the derived max_model_len \
(max_position_embeddings=32768.0 or model_max_length=None in model's config.json). To allow overriding this
"""
NO_BLOCKS = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`\n"
TAKEN = """\
ValueError: Free memory on device cuda:0 (15.32/22.04 GiB) on startup is less than desired GPU memory \
utilization (0.9, 19.84 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.
"""
CUDA_OOM = """\
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 22.04 GiB
"""
GATED = """\
huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-65)

Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/resolve/main/config.json.
Access to model meta-llama/Llama-3.1-8B-Instruct is restricted. You must have access to it and be authenticated
"""
NO_SUCH_MODEL = """\
OSError: Qwen/Qwen2.5-0.5B-Instrukt is not a local folder and is not a valid model identifier listed on \
'https://huggingface.co/models'
"""
NO_HUB = """\
urllib3.exceptions.NameResolutionError: HTTPSConnection(host='huggingface.co', port=443): Failed to resolve \
'huggingface.co' ([Errno -3] Temporary failure in name resolution)
"""
OLD_GPU = """\
ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has 7.5.
"""
NO_GPU = (
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod."
)
IMAGE = "docker.io/vllm/vllm-openai:v0.30.0"


def pod(
    status: dict[str, Any] | None = None,
    *,
    name: str = "llm-d-decode-5d9c7b6f4-x2x7k",
    gpus: str = "",
    memory: str = "16Gi",
) -> dict[str, Any]:
    """Return a pod of the model server with a status."""
    requests = {"cpu": "2", "memory": "8Gi"} | ({"nvidia.com/gpu": gpus} if gpus else {})
    container = {
        "name": "modelserver",
        "image": IMAGE,
        "resources": {"requests": requests, "limits": {"memory": memory}},
    }
    return {
        "metadata": {"name": name},
        "spec": {"containers": [container]},
        "status": status or {},
    }


def unscheduled(
    message: str, *, name: str = "llm-d-decode-5d9c7b6f4-x2x7k", gpus: str = ""
) -> dict[str, Any]:
    """Return a pod that got no node."""
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    return pod({"phase": "Pending", "conditions": [condition]}, name=name, gpus=gpus)


def waiting(
    reason: str, message: str = "", *, last: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a pod whose container waits, as after a crash or a failed pull."""
    container = {
        "name": "modelserver",
        "image": IMAGE,
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": {"terminated": last} if last else {},
    }
    return pod({"phase": "Running" if last else "Pending", "containerStatuses": [container]})


def crashed(*, reason: str = "Error", code: int = 1, memory: str = "16Gi") -> dict[str, Any]:
    """Return a pod whose container ended and is started again and again."""
    ended = {"exitCode": code, "reason": reason, "finishedAt": "2026-11-20T09:12:05Z"}
    found = waiting("CrashLoopBackOff", "back-off 1m20s restarting failed container", last=ended)
    return {**found, "spec": pod(memory=memory)["spec"]}


def event(reason: str, message: str, *, of: str) -> dict[str, Any]:
    """Return an event about an object."""
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"name": of}}
