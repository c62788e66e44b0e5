"""The YAML file as pydantic models. Imports nothing heavy: a worker or the UI reads it without torch.

Every field says what it means and in which unit. `${VAR}` is kept as written (so no secret reaches a run's
parameters) and expanded by `expand` only where an `Address` is used.
"""

from retort.config.base import ERRORS as ERRORS
from retort.config.base import Address as Address
from retort.config.base import Metric as Metric
from retort.config.base import Settings as Settings
from retort.config.base import expand as expand
from retort.config.data import ColumnsConfig as ColumnsConfig
from retort.config.data import DataConfig as DataConfig
from retort.config.data import HubConfig as HubConfig
from retort.config.data import Source as Source
from retort.config.gate import GateConfig as GateConfig
from retort.config.gate import SliceConfig as SliceConfig
from retort.config.infrastructure import ExecutionConfig as ExecutionConfig
from retort.config.infrastructure import RecipeConfig as RecipeConfig
from retort.config.infrastructure import RunSettings as RunSettings
from retort.config.infrastructure import StoreConfig as StoreConfig
from retort.config.infrastructure import TrackingConfig as TrackingConfig
from retort.config.mckd import Baseline as Baseline
from retort.config.mckd import EvaluationConfig as EvaluationConfig
from retort.config.mckd import MckdConfig as MckdConfig
from retort.config.mckd import MergeConfig as MergeConfig
from retort.config.mckd import MethodConfig as MethodConfig
from retort.config.mckd import SelectionConfig as SelectionConfig
from retort.config.problems import WITHOUT_CLASSES as WITHOUT_CLASSES
from retort.config.problems import ChatConfig as ChatConfig
from retort.config.problems import ClassificationConfig as ClassificationConfig
from retort.config.problems import ConstituencyConfig as ConstituencyConfig
from retort.config.problems import EntitiesConfig as EntitiesConfig
from retort.config.problems import MultiLabelConfig as MultiLabelConfig
from retort.config.problems import Problem as Problem
from retort.config.problems import RegressionConfig as RegressionConfig
from retort.config.problems import SlotsConfig as SlotsConfig
from retort.config.problems import TextConfig as TextConfig
from retort.config.students import CausalConfig as CausalConfig
from retort.config.students import EncoderConfig as EncoderConfig
from retort.config.students import GenerativeConfig as GenerativeConfig
from retort.config.students import LoraConfig as LoraConfig
from retort.config.students import Seq2SeqConfig as Seq2SeqConfig
from retort.config.students import SequenceClassificationConfig as SequenceClassificationConfig
from retort.config.students import Student as Student
from retort.config.students import TokenClassificationConfig as TokenClassificationConfig
from retort.config.teachers import FINETUNED_TRAINING as FINETUNED_TRAINING
from retort.config.teachers import EndpointConfig as EndpointConfig
from retort.config.teachers import EnsembleConfig as EnsembleConfig
from retort.config.teachers import FinetunedConfig as FinetunedConfig
from retort.config.teachers import LlmTeacherConfig as LlmTeacherConfig
from retort.config.teachers import RecordedConfig as RecordedConfig
from retort.config.teachers import Teacher as Teacher
from retort.config.teachers import TransformersConfig as TransformersConfig
from retort.config.teachers import VllmConfig as VllmConfig
from retort.config.training import DistillationConfig as DistillationConfig
from retort.config.training import GoldTrainingConfig as GoldTrainingConfig
from retort.config.training import StoppingConfig as StoppingConfig
from retort.config.training import StudentTrainingConfig as StudentTrainingConfig
from retort.config.training import TrainingConfig as TrainingConfig
