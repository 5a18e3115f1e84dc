"""Decides what a job was doing: by its frames, then operations, words and announcements."""

# ruff: noqa: E501 -- a rule is one line
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from oomguard.evidence.frames import Frame, Traceback
from oomguard.evidence.phase_table import TABLE
from oomguard.evidence.verdict import Phase

_OF = {
    (file, function): Phase(phase)
    for file, phases in TABLE.items()
    for phase, functions in phases.items()
    for function in functions.split()
}
_PACKAGES = frozenset(file.split("/", 1)[0] for file in TABLE)
#: Packages that were renamed; older logs have the old path.
_RENAMED = {"pytorch_lightning": "lightning/pytorch", "lightning_fabric": "lightning/fabric"}

#: The functions of everybody else, and of other versions, by their names: (phase, file, function).
_BY_NAME = tuple(
    (phase, re.compile(file), re.compile(name))
    for phase, file, name in (
        # A dead worker's signal is handled wherever the program is.
        (Phase.BATCH, r"torch/utils/data/(?!_utils/signal_handling)", r""),
        (Phase.BACKWARD, r"tensorflow/python/|keras/", r"^(compute_gradients|gradient|_gradient_function)$"),
        (Phase.OPTIMIZER, r"tensorflow/python/|keras/", r"^(_?apply_gradients|apply|update_step)$"),
        (Phase.BACKWARD, r"", r"^_?backward$|^run_backward$|^_engine_run_backward$|_backward(_hook|_pass)?$|^backward_|^unpack_hook$|^recompute_fn$|^torch::autograd::Engine"),
        (Phase.FORWARD, r"", r"^training_step$|^_?(wrap_)?closure$|^_?generate(_\w+)?$"),
        (Phase.OPTIMIZER, r"optim|deepspeed|zero", r"^_?(single_|multi_)?(optimizer_)?step$|^_init_group$|^_take_model_step$|^_init_state$"),
        (Phase.OPTIMIZER, r"", r"^(_?optimizer_step|init_optimizer_state|_initialize_optimizer_states)$"),
        (Phase.EVAL, r"", r"^(_?evaluate|_?validate|_?eval(uation)?_(?!mode|batch_size|dataset)\w+|torch_pad_and_concatenate|nested_concat|evaluation_loop|prediction_step|predict(_step)?|validation_step|_run_validation|test_step|(do_|run_)?(test|val|valid|validation)(_one)?(_epoch|_loop|_model)?)$"),
        (Phase.SAVE, r"", r"^_?save(_|$)|^_?(save|write)_\w*(checkpoint|state|model)|^_save_checkpoint$|^gather_\w*state_dict$|^_zero3_consolidated_16bit_state_dict$"),
        (Phase.BATCH, r"", r"^(\w+_)?collate(_fn|_\w+)?$"),
        (Phase.BATCH, r"(?i)data(?!parallel|_parallel)\w*(?:/|\.py)", r"^__getitem__$"),
        (Phase.PREPROCESS, r"", r"^_?load_(and_\w+_)?(data|dataset|datasets|images?|features|examples|samples|train|val|test|csv|jsonl?|annotations?|corpus|texts?|documents?)(_\w+)?$"),
        (Phase.PREPROCESS, r"(?:^|/)(?:numpy|PIL|h5py|json|librosa|soundfile|imageio|skimage|torchaudio|torchvision/(?:io|datasets))/", r"^_?(load|loads|open|read|memmap)"),
        (Phase.LAUNCH, r"(?:^|/)(?:argparse|hf_argparser|jsonargparse/\w+)\.py", r"^_?(parse_|error$)"),
        (Phase.LOAD, r"^(?!.*(?:/|<frozen )(?:importlib|yaml|omegaconf|hydra|pickle|ctypes|tomllib)\b)", r"from_pretrained|^_?load(_\w*(model|net|network|backbone|state|checkpoint|ckpt|weight|param|pretrained|adapter|lora|llm|shard|tensor|module|quantiz|from|into|pipeline|transformer|encoder|decoder|tokenizer|processor|engine)\w*)?$|^load_(model|state_dict|checkpoint|weights)|set(up)?_(kv_)?caches?$|^_apply$|^to_empty$|^create_weights$|^deepspeed_init$|^merge_and_unload$|^export_model$"),
        (Phase.PREPROCESS, r"", r"^get_(train_|eval_)?dataset$|^_?get_(preprocessed|merged)_dataset$|^load_dataset$|^_map_single$|^tokenize(_\w+)?$|^preprocess(_\w+)?$|^_?prepare_(\w+_)?data(set|sets)?$|^_?prepare_dataset$"),
        (Phase.PREPROCESS, r"/datasets/", r"^map$|^_?(iter|batch)_\w*$"),
        (Phase.PREPROCESS, r"(?:^|/)pyarrow/_?(json|csv|parquet|dataset)|(?:^|/)pandas/io/", r""),
    )
)  # fmt: skip
#: Functions that name a phase only where nothing around them did.
_WEAK = re.compile(
    r"(?:^|_)(?:forward|attn|attention)(?:_|$)|^compute_loss$|^_(?:wrapped_)?call_impl$|^call$"
)
#: A script that only evaluates: its forward pass is the evaluation's.
_EVALUATES = re.compile(
    r"(?i)(?:^|/)(?:eval|evaluate|evaluation|validate|validation)(?:_\w+)?\.py$"
)
#: What the source lines of a traceback call, for functions that say nothing by themselves.
_CALLED = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        (Phase.SAVE, r"\btorch\.save\(|\.save(?:_pretrained|_checkpoint|_model|_state|_weights)\("),
        (Phase.EVAL, r"(?<!def )\b(?:\w+\.)?_?(?:run_|do_)?(?:evaluate|validate|evaluation|validation)(?:_(?!mode|config|args)\w+)?\("),
        (Phase.LOAD, r"\.from_pretrained\(|\btorch\.load\(|\bvariables_initializer\(|\.load_(?:state_dict|checkpoint|weights)\(|\b\w*(?:model|network|unet|encoder|decoder|backbone|net[GD]?)\.(?:to|cuda|half|float)\("),
        (Phase.BACKWARD, r"\.backward\("),
        (Phase.OPTIMIZER, r"\b\w*(?:optim\w*|opt|scaler)\.step\("),
        (Phase.PREPROCESS, r"\bload_dataset\(|\bdatasets?\.map\("),
        (Phase.LAUNCH, r"\binit_process_group\(|\binit_distributed\(|\bcuda\.set_device\("),
        (Phase.FORWARD, r"\b(?:self\.)?(?:model|net|network|unet|net[GD]|transformer|encoder|decoder|backbone|classifier|generator|discriminator|critic)\(|\.generate\("),
    )
)  # fmt: skip
#: What a phase contains stays in it: evaluation runs the forward pass, saving gathers states.
_CONTAINERS = frozenset(
    {Phase.BACKWARD, Phase.BATCH, Phase.EVAL, Phase.LOAD, Phase.PREPROCESS, Phase.SAVE}
)

_OPERATIONS = (
    (Phase.SAVE, re.compile(r"\[?Op:(?:Save|Write|ShardedFilename|MergeV2Checkpoints)\w*")),
    (Phase.LOAD, re.compile(r"\[?Op:(?:Restore|Read)\w*")),
    (Phase.BACKWARD, re.compile(r"\bin operator\(\): \w*Backward|\b\w+Backward\d\b|gradient_tape|\bgrad_fn\b|(?:\bNode: |\bnode )\S*\bgradients(?:_\d+)?/")),
    (Phase.OPTIMIZER, re.compile(r"(?:\bNode: |\bnode )\S*\b(?:Adam\w*|SGD|RMSprop|RMSProp|Momentum|Adagrad|Adafactor|[Oo]ptimizer\w*)/")),
)  # fmt: skip
#: What the words of an error say about the place in which it was raised.
_WORDS = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        (Phase.SAVE, r"(?i)\breturning from state_dict\(\)|\bcheckpoint (?:write|save|saving)\b|\b(?:writ|sav)ing (?:the )?(?:checkpoint|model)"),
        (Phase.LOAD, r"(?i)\bcache blocks\b|\bavailable kv[ -]cache\b|\bkv[ -]cache is needed\b|\bstored in (?:the )?kv[ -]cache\b|\bmerge (?:the )?adapters?\b|\.so[.\d]*: cannot (?:allocate|open|enable)|\bweight loading\b|\bengine ?core failed to start"),
        (Phase.LAUNCH, r"(?i)\bserver socket\b|\baddress already in use\b|\bTCPStore\b|\bCUDA-capable device|\bport\b.{0,40}\bin use\b|unrecognized arguments"),
        (Phase.PREPROCESS, r"\bArrow(?:Capacity|Invalid|NotImplemented)\w*|\bDatasetGenerationError\b"),
    )
)  # fmt: skip
#: What the lines between tracebacks say that the job is doing.
_ANNOUNCED = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        (Phase.SAVE, r"(?i)\b(?:saving|writing|dumping|summoning) (?:\w+ ){0,3}(?:checkpoint|weights|model)|\bcheckpoint (?:write|save|saving)|model weights saved"),
        (Phase.EVAL, r"\*{3,} ?Running (?:Evaluation|Prediction|evaluation)|(?i:\bvalidating\b|^evaluating\b|\bepoch\b.{0,12}\((?:val|valid|validation|eval|test)\)|^(?:val|valid|validation|eval|evaluation|testing)\b[^|]{0,40}\d+%|\bstart(?:ing)? (?:evaluation|validation)\b)"),
        (Phase.PREPROCESS, r"(?i)converting format of dataset|running tokenizer on dataset|^tokenizing\b|\bmap \(num_proc|generating \w+ split|\bpreprocessing\b|^loading (?:\w+ )?(?:data|datasets?)\b|^preparing (?:\w+ ){0,2}(?:data|datasets?|set|splits?|examples|samples)\b|^map:\s+\d+%"),
        (Phase.LOAD, r"(?i)loading (?:\w+ )?(?:checkpoint shards|weights|model)|\bweights? loading\b|loading safetensors|model loading took|\bcreating (?:the )?model\b|skipping token \S+ with \d+-dimensional vector"),
        (Phase.BACKWARD, r"\.backward\(\)"),
        (Phase.OPTIMIZER, r"\boptimizer\.step\(\)"),
    )
)  # fmt: skip
_TEXT_CHARS = 2000


def phase_of(traceback: Traceback) -> Phase:
    """Return what the frames say, outer contexts before inner ones; else the source between them.

    Saving inside an evaluation is saving. An optimizer step or a forward pass may contain others:
    Lightning's step runs the closure.
    """
    phase = Phase.UNKNOWN
    for frame in traceback.frames:
        phase = _within(phase, _phase_of_frame(frame))
        if phase is Phase.UNKNOWN:
            phase = _weak_phase(frame)
    # Where frames tell, only the innermost line adds to them: what it calls left no frame.
    for text in traceback.source[-2:] if phase is not Phase.UNKNOWN else traceback.source:
        phase = _within(phase, _first(_CALLED, [text]))
    scripts = [frame.file for frame in traceback.frames if frame.name == "<module>"]
    if phase in (Phase.UNKNOWN, Phase.FORWARD) and any(map(_EVALUATES.search, scripts)):
        return Phase.EVAL
    return phase if phase is not Phase.UNKNOWN else announced(traceback.source)


def _within(outer: Phase, inner: Phase) -> Phase:
    """Return the phase of a context inside another one."""
    if inner is Phase.SAVE:
        return inner
    # A process is launched once; later the same functions only meet the device for the first time.
    if inner is Phase.UNKNOWN or (inner is Phase.LAUNCH and outer is not Phase.UNKNOWN):
        return outer
    return outer if outer in _CONTAINERS else inner


def announced(texts: Iterable[str]) -> Phase:
    """Return the phase that the first telling line announces."""
    return _first(_ANNOUNCED, texts)


def phase_in_words(text: str) -> Phase:
    """Return the phase that an error's operation or words name."""
    found = _first(_OPERATIONS, [text])
    return found if found is not Phase.UNKNOWN else _first(_WORDS, [text])


def _phase_of_frame(frame: Frame) -> Phase:
    parts = frame.file.split("/")
    name = frame.name.rsplit(".", 1)[-1]
    for place in range(len(parts) - 1, -1, -1):
        part = parts[place]
        if part in _PACKAGES or part in _RENAMED:
            file = "/".join((_RENAMED.get(part, part), *parts[place + 1 :]))
            if (file, name) in _OF:
                return _OF[file, name]
    rules = (p for p, f, n in _BY_NAME if f.search(frame.file) and n.search(name))
    return next(rules, Phase.UNKNOWN)


def _weak_phase(frame: Frame) -> Phase:
    # Models are built under a device context, through which every factory function then goes.
    if frame.file.endswith("torch/utils/_device.py"):
        return Phase.LOAD
    calls_program = frame.file.endswith("subprocess.py")
    return Phase.FORWARD if _WEAK.search(frame.name) and not calls_program else Phase.UNKNOWN


def _first(rules: Sequence[tuple[Phase, re.Pattern[str]]], texts: Iterable[str]) -> Phase:
    found = (phase for text in texts for phase, rule in rules if rule.search(text[:_TEXT_CHARS]))
    return next(found, Phase.UNKNOWN)
