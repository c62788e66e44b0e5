"""`train-small`: the arm `tinybert`, an encoder of about TinyBERT's size, trained on the gold labels.

TinyBERT (Jiao et al. 2020) has 4 layers of width 312, 14.5 M parameters, and comes from a distillation of BERT on a
general corpus. Its weights cannot be shipped; the first layers of a pretrained encoder stand in for it, which keep what
the encoder learnt, as TinyBERT keeps what it learnt from BERT. The report prints how many parameters that makes.
"""

import dataclasses
import tempfile
from pathlib import Path

from retort.config import SequenceClassificationConfig
from retort.config.soft_label import SoftLabelConfig
from retort.models.weights import find_weights
from retort.recipes.soft_label.jobs import encoder_job
from retort.records.base import ArtifactRef, Step
from retort.steps.context import StepContext
from retort.steps.train_student import make_student, train_student
from retort.store import StepOutput

VERSION = 1


def train_small(config: SoftLabelConfig, name: str, train: ArtifactRef, index: int) -> Step:
    """One of `tinybert.seeds`; what `train_student` makes, from fewer layers."""
    small = config.tinybert
    job = encoder_job(config, small.model, small.training)
    whole = train_student(job, name, train, index=index)
    return whole.model_copy(
        update={"verb": "train-small", "version": VERSION, "params": {**whole.params, "layers": small.layers}}
    )


def make_small(work: StepContext) -> StepOutput:
    """Raises ConfigError where the encoder cannot be loaded, or is no deeper than that."""
    with tempfile.TemporaryDirectory(prefix="retort-layers-") as folder:
        _first_layers(work.stage, Path(folder))
        source = SequenceClassificationConfig(kind="sequence-classification", model=folder)
        params = {**work.stage.params, "weights": find_weights(source).identity}
        stage = work.stage.model_copy(update={"params": params, "knobs": {**work.stage.knobs, "model": folder}})
        return make_student(dataclasses.replace(work, stage=stage))


def _first_layers(stage: Step, folder: Path) -> None:
    import transformers

    from retort.config import expand
    from retort.errors import ConfigError

    model, endpoint_url = stage.knobs["model"], stage.knobs["endpoint_url"]
    source = SequenceClassificationConfig(kind="sequence-classification", model=model)
    weights = find_weights(source, endpoint_url and expand(endpoint_url), "tinybert.model")
    config = transformers.AutoConfig.from_pretrained(weights.address, revision=weights.revision)
    if config.num_hidden_layers < stage.params["layers"]:
        raise ConfigError(
            f"tinybert.layers = {stage.params['layers']}: '{model}' has only {config.num_hidden_layers} layers"
        )
    config.num_hidden_layers = stage.params["layers"]
    encoder = transformers.AutoModel.from_pretrained(
        weights.address, revision=weights.revision, config=config, use_safetensors=True
    )
    encoder.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(weights.address, revision=weights.revision).save_pretrained(folder)
