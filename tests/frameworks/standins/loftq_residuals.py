"""Write what is left of LoftQ's quantization error; takes OUT.json and the flags of train.py.

For each adapted weight: the norm of the error alone, that of the error less the adapter, and the
smallest that any adapter of this rank could reach. Nothing is trained.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "recipes" / "peft_loftq"))

import train
from train_on_cpu import compute_on_cpu


def norms(weight, layer):
    import bitsandbytes  # noqa: PLC0415

    quantized = layer.base_layer.weight
    base = bitsandbytes.functional.dequantize_4bit(quantized.data, quantized.quant_state)
    error = weight - base.float()
    low, high = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    singular = torch.linalg.svdvals(error)
    return {
        "alone": error.norm().item(),
        "adapted": (error - high @ low).norm().item(),
        "best": singular[layer.r["default"] :].norm().item(),
    }


def residuals(path):
    from transformers import HfArgumentParser, TrainingArguments  # noqa: PLC0415

    parser = HfArgumentParser((train.ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    model = train.adapted(script, training)
    whole = train.AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    layers = model.base_model.model.model.layers[0]
    names = ("self_attn.q_proj", "mlp.down_proj")
    found = {
        name: norms(
            whole.model.layers[0].get_submodule(name).weight.detach(), layers.get_submodule(name)
        )
        for name in names
    }
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    compute_on_cpu()
    with torch.no_grad():
        residuals(Path(sys.argv.pop(1)))
