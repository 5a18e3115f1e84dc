"""Scripts that let PEFT's LoftQ start a LoRA adapter: all at once, or in stages.

At once, `get_peft_model` with `init_lora_weights="loftq"` takes several copies of each weight of
the unquantized model in fp32; in stages, the base is loaded in 4-bit, a plain adapter is added
and `replace_lora_weights_loftq` reads one tensor at a time. A script is expected to have
`--staged` for it, as recipes/peft_loftq/train.py does. Source: peft 0.18.1,
utils/loftq_utils.py; huggingface/peft#1708.
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import fields, launchers
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.contract import Claim, Marks
from oomguard.adapters.fields import Binding, Bindings, Edits, flag
from oomguard.adapters.hf import hf_trainer
from oomguard.adapters.hf.hf_memory import LOFTQ_BITS
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.settings.script_settings import LOFTQ
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import TrainingCode
from oomguard.job.plan import Loftq, Plan, Quantization, Tuning
from oomguard.job.training_job import Job

_STAGED = flag("staged")
_ITERATIONS = fields.number("loftq_iter", 1)
_FOUR = 4
_OWN = {"quantization", "tuning"}


def _staged_edits(settings: Settings, value: object) -> Edits | None:
    """Spell a stage; what `replace_lora_weights_loftq` does is 4 bits and one iteration."""
    if value not in (Loftq.AT_ONCE, Loftq.STAGED) or not settings.has(_STAGED.name):
        return None
    staged = value is Loftq.STAGED
    one: Edits = {LOFTQ_BITS: _FOUR, _ITERATIONS: 1} if staged else {}
    return {_STAGED: staged, **one}


BINDINGS = Bindings(
    bindings=(
        *(binding for binding in hf_trainer.BINDINGS.bindings if binding.field not in _OWN),
        fields.switch("quantization", _STAGED, on=Quantization.NF4, off=Quantization.NONE),
        Binding(field="tuning", read=lambda _: Tuning.LORA, edits=lambda _, __: None),
        Binding(
            field="loftq",
            read=lambda settings: Loftq.STAGED if _STAGED.of(settings) else Loftq.AT_ONCE,
            edits=_staged_edits,
        ),
    )
)


def _belong_together(plan: Plan) -> bool:
    staged = plan.loftq is Loftq.STAGED
    return (plan.quantization is Quantization.NF4) is staged


_REFUSALS = (
    Refusal(
        message="this script has no --staged: let it load the base in 4-bit, call "
        "prepare_model_for_kbit_training and get_peft_model with a plain LoraConfig, then "
        "replace_lora_weights_loftq",
        when=lambda s, job, plan: plan.loftq is not job.asked.loftq and not s.has(_STAGED.name),
    ),
    Refusal(
        message="LoftQ all at once needs the unquantized model; in stages it needs one in NF4",
        when=lambda _, __, plan: not _belong_together(plan),
    ),
    *hf_trainer.REFUSALS,
)


class PeftLoftq(HFTrainer):
    """PEFT scripts with LoftQ."""

    name = "peft_loftq"
    title = "PEFT script with LoftQ"
    training_code = TrainingCode()
    marks = Marks()
    bindings = BINDINGS
    refusals = _REFUSALS
    groups = LOFTQ

    def known_to(self, job: Job) -> frozenset[str]:
        """Return nothing: a script has settings of its own."""
        return frozenset()

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim a script whose flags ask for LoftQ."""
        launch = launchers.parse(argv)
        if launch is None or launch.is_module:
            return Claim.NO
        flags = Flags(args=launch.args)
        asked = flags.get("init_lora_weights") == "loftq"
        return (
            Claim.OWN
            if asked or flags.has(LOFTQ_BITS.name) or flags.has(_ITERATIONS.name)
            else Claim.NO
        )

    def normalize(self, job: Job, plan: Plan) -> Plan:
        """Set the 4-bit base that LoftQ in stages starts from."""
        if plan.loftq is job.asked.loftq:
            return plan
        staged = plan.loftq is Loftq.STAGED
        return replace(plan, quantization=Quantization.NF4 if staged else Quantization.NONE)
