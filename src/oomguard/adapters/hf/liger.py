"""The models whose loss Liger's kernels fuse with the output head.

For other models the switch is accepted, and the logits stay whole.
"""

from __future__ import annotations

from oomguard.adapters.config_adapter import Refusal
from oomguard.job.plan import LossKernel

#: liger-kernel 0.8.5, transformers/monkey_patch.py: the model types of
#: MODEL_TYPE_TO_APPLY_LIGER_FN whose function has fused_linear_cross_entropy on by default.
FUSED = frozenset(
    """
    deepseek_v2 deepseek_v3 deepseek_v4 exaone4 falcon_h1 gemma gemma2 gemma3 gemma3_text gemma4
    gemma4_text glm4 glm4v glm4v_moe gpt_oss hunyuan_v1_dense hunyuan_v1_moe internvl llama llama4
    llama4_text llava ministral mistral mixtral mllama mllama_text_model muse_glimmer nemotron olmo2
    olmo3 paligemma phi3 qwen2 qwen2_5_vl qwen2_5_vl_text qwen2_vl qwen2_vl_text qwen3 qwen3_5
    qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe
    qwen3_vl_moe_text qwen3_vl_text smollm3 smolvlm
    """.split()
)


def not_fused(models: frozenset[str], message: str) -> Refusal:
    """Return the refusal of a fused loss for models that are known not to get one."""
    return Refusal(
        message=message,
        when=lambda _, job, plan: (
            plan.loss_kernel is LossKernel.FUSED
            and job.asked.loss_kernel is not LossKernel.FUSED
            and job.model_type is not None
            and job.model_type not in models
        ),
    )


NOT_FUSED = not_fused(
    FUSED, "There are currently no Liger kernels for the loss of this model type."
)
