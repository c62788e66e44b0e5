"""`train-small`: the arm `tinybert`, an encoder of about TinyBERT's size, trained on the gold labels.

TinyBERT (Jiao et al. 2020) has 4 layers of width 312, 14.5 M parameters, and was distilled from BERT on a general
corpus. Its weights cannot be shipped, so the first layers of a pretrained encoder stand in for it: like TinyBERT, they
start with knowledge from a larger encoder. The report prints the number of parameters.
"""

from pathlib import Path

from retort.config import SequenceClassificationConfig
from retort.errors import ConfigError
from retort.io.scratch import scratch
from retort.models.weights import Weights, find_weights
from retort.steps.context import StepContext
from retort.steps.train_student import TrainStudent
from retort.store import StepOutput


class TrainTinyBert(TrainStudent):
    """Train an encoder of TinyBERT's size on the gold labels."""

    kind = "train-small"
    version = 1

    layers: int
    """How many of the encoder's first layers are kept."""

    def run(self, context: StepContext) -> StepOutput:
        """Raises ConfigError if the encoder cannot be loaded or has fewer layers."""
        whole = self.found_weights()
        with scratch("layers") as folder:
            self._write_first_layers(whole, folder)
            return self.train(context, find_weights(_source(str(folder))))

    def _write_first_layers(self, weights: Weights, folder: Path) -> None:
        import transformers

        found = {"revision": weights.revision, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(weights.address, **found)
        if config.num_hidden_layers < self.layers:
            raise ConfigError(
                f"tinybert.layers = {self.layers}: '{self.model}' has only {config.num_hidden_layers} layers"
            )
        config.num_hidden_layers = self.layers
        encoder = transformers.AutoModel.from_pretrained(weights.address, config=config, use_safetensors=True, **found)
        encoder.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights.address, **found)
        tokenizer.save_pretrained(folder)


def _source(model: str) -> SequenceClassificationConfig:
    return SequenceClassificationConfig(kind="sequence-classification", model=model)
