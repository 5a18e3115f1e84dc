"""Run recipes/peft_loftq/train.py where there is no GPU.

PEFT 0.18.1 decomposes the residuals of the staged way on "cuda" whatever the model is on: here on
the CPU. Nothing else differs. `--residuals OUT.json ...` does not train: it writes, for each
adapted weight, the norms of what is left of the quantization error with and without the adapter,
and the smallest that any adapter of this rank could leave.
"""

import inspect
import json
import sys
from pathlib import Path

import torch
from peft.utils import loftq_utils

RECIPE = Path(__file__).parents[3] / "recipes" / "peft_loftq"


def compute_on_cpu():
    source = inspect.getsource(loftq_utils._loftq_init_new).replace('"cuda"', '"cpu"')
    exec(compile(source, loftq_utils.__file__, "exec"), loftq_utils.__dict__)


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
    import train  # noqa: PLC0415
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
    sys.path.insert(0, str(RECIPE))
    if sys.argv[1:2] == ["--residuals"]:
        _, target = sys.argv.pop(1), sys.argv.pop(1)
        with torch.no_grad():
            residuals(Path(target))
    else:
        import train

        train.main()
