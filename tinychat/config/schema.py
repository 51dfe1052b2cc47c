"""The typed configuration: one dataclass per config group, registered in Hydra's ConfigStore.

Types and one-line meanings live here (those of stages in config/stages.py and rollout_stages.py). **Defaults live in
conf/ alone**: every field is MISSING here, so a YAML file that forgets one fails when it is composed. Nothing in this
module imports torch, because the parent process answers `--help` and typing mistakes before torch would have loaded.
Checks that span several fields are in tinychat.config.checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from tinychat.config.specs import SPECS, spec_named
from tinychat.config.stages import MixPart


class LaunchKind(Enum):
    inline = "inline"
    torchrun = "torchrun"
    deepspeed = "deepspeed"
    slurm = "slurm"


@dataclass
class SlurmConfig:
    """What sbatch is asked for beside the number of ranks. Texts and null as sbatch takes them."""

    partition: str | None = MISSING
    account: str | None = MISSING
    time: str | None = MISSING  # limit, as HH:MM:SS or D-HH:MM:SS; null: the partition's
    gpus: int = MISSING  # on each node; 0: none
    cpus: int | None = MISSING  # cores of each rank
    memory: str | None = MISSING  # of each node, as 64G
    job_name: str | None = MISSING  # null: the run's name
    save_minutes: float = MISSING  # before the limit, the run is told to save and stop
    extra: list[str] = MISSING  # further options of sbatch, as --constraint=a100
    setup: list[str] = MISSING  # shell lines that make the environment, as module load cuda
    poll_seconds: float = MISSING  # between two looks at the queue


@dataclass
class LaunchConfig:
    """How the ranks of one job are started."""

    name: str = MISSING
    kind: LaunchKind = MISSING
    nproc: int = MISSING  # ranks on each node
    nnodes: int = MISSING
    node_rank: int = MISSING  # torchrun: of this machine, 0-based
    rdzv_endpoint: str | None = MISSING  # host:port on node 0 where more than one node meets
    hostfile: str | None = MISSING  # deepspeed: the nodes, a line HOST slots=N each
    timeout_minutes: float = MISSING  # a collective or rendezvous that takes longer is an error
    dry_run: bool = MISSING  # print the command or script that would be run, write and start nothing
    wait: bool = MISSING  # slurm: whether the command waits for the job's result
    slurm: SlurmConfig | None = MISSING  # null for the others


class SamplerKind(Enum):
    """How a sweep chooses the values of its next trial."""

    gp = "gp"  # Bayesian optimisation: a Gaussian process, expected improvement
    tpe = "tpe"  # tree-structured Parzen estimator
    nsgaii = "nsgaii"  # genetic, for several objectives
    random = "random"
    grid = "grid"  # all combinations of listed values


class PrunerKind(Enum):
    """Which trials a sweep ends early, by what they measured so far."""

    none = "none"
    median = "median"  # worse than the median of the trials before at the same progress
    hyperband = "hyperband"


class KeepCheckpoints(Enum):
    all = "all"
    best = "best"  # of the best trial so far (several objectives: of those on the front)


@dataclass
class SweepConfig:
    """A search: what is varied, what is wanted, how long. Its command is `python -m tinychat.train -m ...`."""

    name: str = MISSING
    study: str = MISSING  # folder under OUTPUTS/sweeps; the same name goes on with the same study
    storage: str | None = MISSING  # database of the study, as Optuna writes addresses; null: study.db in that folder
    sampler: SamplerKind = MISSING
    sampler_options: dict[str, Any] = field(default_factory=dict)  # further arguments of Optuna's sampler
    seed: int = MISSING  # of the sampler
    own_first: bool = MISSING  # the first trial has the values that a run without the sweep would have
    n_trials: int | None = MISSING  # trials in all, those of earlier starts included; null (grid): every combination
    objective: list[str] | None = MISSING  # final metrics of the stage; null: the one that the stage reports
    direction: list[str] | None = MISSING  # minimize or maximize, of each; null: as the metric is better
    pruner: PrunerKind = MISSING  # needs one objective that is measured during training (stage.eval_every)
    pruner_options: dict[str, Any] = field(default_factory=dict)  # further arguments of Optuna's pruner
    prune_on: list[str] = (
        MISSING  # alarms that end a trial at once: of rollouts kl entropy eos length clip sampler gold; of DPO fall
    )
    max_failures: int = MISSING  # failed trials in a row after which the sweep gives up
    keep_checkpoints: KeepCheckpoints = MISSING
    register: str | None = MISSING  # name in MLflow's model registry for the winner; null: not registered
    quiet: bool = MISSING  # a trial's lines go to its run folder alone
    params: dict[str, str] = field(default_factory=dict)  # key -> what to search, in Hydra's words for sweeps


class Precision(Enum):
    """Arithmetic of the forward and backward pass; master weights and optimizer state stay fp32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class TokenizerKind(Enum):
    bpe = "bpe"
    gpt2 = "gpt2"
    pretrained = "pretrained"


class Preference(Enum):
    """Which of PKU-SafeRLHF's two answers says which reply was chosen."""

    safer = "safer"
    better = "better"


class TaskLevel(Enum):
    """Which of tinyworld's instructions."""

    plain = "plain"  # what a model of a million parameters learns in minutes
    hard = "hard"  # what it does not
    bilingual = "bilingual"  # of six skills, in English and in Chinese; every second lesson is Chinese too


class ResumeData(Enum):
    """Whether a resume goes on where the data changed since the run began."""

    same = "same"
    changed = "changed"


class ToolCalls(Enum):
    """What becomes of a conversation in which tools are called."""

    refuse = "refuse"
    text = "text"


class OnBadRow(Enum):
    """What becomes of a row that cannot be used."""

    fail = "fail"
    skip = "skip"


class PeftKind(Enum):
    none = "none"
    lora = "lora"
    qlora = "qlora"


class OptimKind(Enum):
    adamw = "adamw"
    muon = "muon"


class TrackerKind(Enum):
    mlflow = "mlflow"
    none = "none"


class WandbMode(Enum):
    offline = "offline"  # files in the run folder, for `wandb sync`
    online = "online"


@dataclass
class PathsConfig:
    """Where things are written."""

    outputs: str = MISSING  # folder of all runs and of the tracking database
    cache: str = MISSING  # folder of tokenized data; may be deleted at any time


@dataclass
class ModelConfig:
    """A transformers model, built from scratch (arch=custom: of a class of yours) or (arch=pretrained) taken from a
    folder or hub id."""

    name: str = MISSING
    arch: str = MISSING  # a name in tinychat.config.shapes.SHAPES: gpt2, llama, qwen3, pretrained, custom
    path: str | None = MISSING  # pretrained: folder, run folder or hub id; custom: FILE.py:CONFIG or MODULE:CONFIG
    n_layer: int | None = MISSING
    n_embd: int | None = MISSING  # hidden size
    n_head: int | None = MISSING
    n_kv_head: int | None = MISSING  # fewer than n_head: grouped-query attention (llama, qwen3)
    n_inner: int | None = MISSING  # width of the MLP
    context_length: int | None = MISSING  # longest sequence in tokens
    vocab_size: int | None = MISSING  # null: the tokenizer's, rounded up to a multiple of 64
    tie_embeddings: bool | None = MISSING  # input embedding and output head are one matrix
    dropout: float = MISSING
    rope_theta: float | None = MISSING  # llama, qwen3: base of the rotary position embedding
    init_std: float | None = MISSING  # standard deviation of new weights
    position_init_std: float | None = MISSING  # gpt2: of the learned positions; null: as init_std
    options: dict[str, Any] = field(default_factory=dict)  # custom: further arguments of the class


@dataclass
class TokenizerConfig:
    """What turns text into tokens. Padding is never the end-of-text token."""

    name: str = MISSING
    kind: TokenizerKind = MISSING
    path: str | None = MISSING  # folder or hub id; bpe: null takes the newest stage=tokenizer run of this experiment
    vocab_size: int | None = MISSING  # bpe: entries, special tokens included
    train_mb: float | None = MISSING  # bpe: megabytes of text it is trained on


@dataclass
class DataConfig:
    """Where rows come from: documents, conversations, preferences, prompts."""

    name: str = MISSING
    source: str = MISSING  # a name in tinychat.data.sources.SOURCES, or a class of yours: FILE.py:NAME, MODULE:NAME
    root: str | None = MISSING  # folder of the public data sets, each in one of its own; null: data.path says where
    path: str | None = MISSING  # own file, folder or glob; null: the hub (tinystories) or the generator (tinyworld)
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of a class of yours
    val_path: str | None = MISSING  # held-out documents; null: the source's own split, else a seeded hold-out
    val_fraction: float = MISSING  # share of documents held out where the source has no validation split
    text_column: str = MISSING  # column or key that holds the text
    weights: dict[str, float] = field(default_factory=dict)  # corpus: source -> share of the tokens; {}: the corpus's;
    # safe_and_helpful: kind of prompt -> share of the prompts; {}: all of each
    max_docs: int | None = MISSING  # training documents read at most
    lessons: float = MISSING  # tinyworld: lessons generated for each training story
    demonstrations: float = MISSING  # tinyworld: share of training conversations that answer its preferences' requests
    unsafe_demonstrations: float = MISSING  # tinyworld: share of those to harmful requests that comply, not refuse
    level: TaskLevel = MISSING  # tinyworld: of its instructions; bilingual: of its lessons too
    families: list[str] = MISSING  # tinyworld: of its instructions, as [addition, sorting]; []: all of the level
    mix: dict[str, MixPart] = field(
        default_factory=dict
    )  # training conversations of other sources, by a name of yours;
    # safe_and_helpful: where its kinds of prompts are from, harmful and benign
    max_val_docs: int | None = MISSING  # validation documents read at most
    max_rows: int | None = MISSING  # training conversations or preferences taken (seeded choice) or generated at most
    max_val_rows: int | None = MISSING  # the same for validation
    on_bad_row: OnBadRow = MISSING  # a row that cannot be used: fail names it, skip leaves it out and counts
    tool_calls: ToolCalls = MISSING  # refuse: a row with calls cannot be used; text: calls and results become text
    preference: Preference = MISSING  # pku_saferlhf: the chosen reply is the safer or the better (more helpful) one
    judge_fraction: float = MISSING  # preferences: share of training prompts for a judge, unseen by the reward model
    seed: int = MISSING  # of the hold-out, the choice of rows and of what is generated
    verifiers: list[str] = MISSING  # kinds of answer of yours, as rows may name them: FILE.py:NAME or MODULE:NAME
    verifier_seconds: float = MISSING  # of processor time that one of yours may take for a reply
    verifier_memory_mb: float = MISSING  # megabytes (1e6 bytes) it may take beside its code
    answer: str | None = MISSING  # prompts: kind of answer of rows with a reference that name none; null: none


class Keep(Enum):
    """Which of a policy's replies to a prompt become conversations."""

    best = "best"  # the one with the highest reward
    all = "all"  # all that differ


@dataclass
class BestOfNConfig(DataConfig):
    """Conversations that a policy makes: the best of its replies to the prompts of another source, of which the keys
    above are settings. The reward is config.reward."""

    prompts: str = MISSING  # whose prompts are answered: as data.source
    policy: str | None = MISSING  # who answers: as init_from; null: the checkpoint that the stage starts from
    samples: int = MISSING  # replies to each prompt
    temperature: float = MISSING  # divides the logits
    max_new_tokens: int = MISSING  # of a reply, which is left out where it does not end by itself
    keep: Keep = MISSING
    threshold: float | None = MISSING  # least reward of a reply that is kept; null: any
    batch_size: int = MISSING  # replies generated or scored side by side on one rank
    replies: str | None = MISSING  # folder of replies made before, below paths.cache; null: made where there are none


HARMFUL, BENIGN = PROMPT_KINDS = ("harmful", "benign")  # of the prompts that data=safe_and_helpful mixes
DATA: dict[str, type[DataConfig]] = {"best_of_n": BestOfNConfig}  # by data.source; others are a DataConfig


@dataclass
class TemplateConfig:
    """How a conversation becomes text; saved inside the tokenizer."""

    name: str = MISSING  # one of tinychat.text.TEMPLATES, or `own`: the one the tokenizer brings
    path: str | None = MISSING  # a template of yours: FILE.jinja; null: the one of that name


@dataclass
class PeftConfig:
    """Adapters: small matrices beside frozen weights (Hu et al. 2021; QLoRA: Dettmers et al. 2023)."""

    name: str = MISSING
    kind: PeftKind = MISSING
    r: int | None = MISSING  # rank
    alpha: float | None = MISSING  # the adapter's output is scaled by alpha / r
    dropout: float | None = MISSING  # on the adapter's input
    targets: list[str] | None = MISSING  # names of linear layers; null: by architecture


@dataclass
class RewardPart:
    """One score of a reply; the parts of a reward are added."""

    kind: str = MISSING  # a name in tinychat.rl.rewards.KINDS: model, oracle, verifier, python
    weight: float = MISSING
    path: str | None = MISSING  # model: folder, auto or best (newest stage=reward); python: FILE.py:NAME or MODULE:NAME
    options: dict[str, Any] = field(
        default_factory=dict
    )  # those of its kind; python: arguments of the class or function
    kinds: list[str] = field(default_factory=list)  # of prompts it scores, where data mix kinds; []: all
    cost: bool = False  # its score says how safe a reply is, and with the sign turned is a cost: reward.cost_limit


@dataclass
class MultiplierConfig:
    """λ of a reward under a constraint (tinychat.rl.lagrange)."""

    start: float = MISSING
    rate: float = MISSING  # of its ascent on mean cost - cost_limit; 0.1: at λ = 1 and a gap of 1 by 10 % a step
    max: float = MISSING  # it grows no further


@dataclass
class RewardConfig:
    """What reinforcement learning maximises: the weighted sum of its parts, or of such that are costs as much of the
    others as a limit of the cost leaves."""

    name: str = MISSING
    parts: dict[str, RewardPart] = field(default_factory=dict)
    any_template: bool = MISSING  # take reward models that were trained in another chat template than the policy's
    normalise: bool = (
        MISSING  # divide each part's scores by their standard deviation over the starting policy's replies
    )
    cost_limit: float | None = MISSING  # mean cost of replies that is kept; null: no part is a cost
    multiplier: MultiplierConfig | None = MISSING  # what a cost weighs, learnt; null where there is no cost_limit


@dataclass
class OptimConfig:
    """The update rule. Learning rates and schedules belong to the stage."""

    name: str = MISSING
    kind: OptimKind = MISSING
    betas: list[float] = MISSING  # AdamW
    eps: float = MISSING  # AdamW
    weight_decay: float = MISSING  # on matrices; embeddings, norms and biases have none
    muon_lr_ratio: float | None = MISSING  # muon: learning rate of the hidden matrices / stage.lr
    muon_momentum: float | None = MISSING
    muon_ns_steps: int | None = MISSING  # Newton-Schulz iterations


@dataclass
class DsConfig:
    """DeepSpeed. `config` is DeepSpeed's own; batch, precision, clipping and optimizer fields are derived."""

    name: str = MISSING
    enabled: bool = MISSING
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrackerConfig:
    name: str = MISSING
    kind: TrackerKind = MISSING
    uri: str | None = MISSING  # null: $MLFLOW_TRACKING_URI, else sqlite under paths.outputs
    system_metrics: bool = MISSING  # CPU, memory, GPU every ten seconds
    parent: str | None = MISSING  # id of the MLflow run that this one belongs to; a pipeline sets it
    tensorboard: bool = MISSING  # event files in the run folder, beside that
    wandb: WandbMode | None = MISSING  # Weights & Biases, beside that; null: not


@dataclass
class CheckpointConfig:
    every: int = MISSING  # optimizer steps between checkpoints; 0: only at the end
    keep_last: int = MISSING  # newest checkpoints kept, with everything a resume needs
    verify: bool = MISSING  # compare checkpoints and caches with their checksums when they are opened
    keep_best: int = MISSING  # best checkpoints kept beside them, by the stage's own metric


@dataclass
class Config:
    """One job, whole."""

    experiment_name: str = MISSING  # runs of one experiment find each other; also the MLflow experiment
    run_name: str | None = MISSING  # null: stage-model-data
    run_dir: str | None = MISSING  # null: a new folder under paths.outputs
    seed: int = MISSING
    init_from: str | None = (
        MISSING  # null | auto | best | folder | folder/best | runs:/id | hub id: weights to start from
    )
    resume: str = MISSING  # never | auto (newest unfinished run of this configuration) | run folder
    resume_data: ResumeData = MISSING  # data that changed since then: same refuses to go on, changed goes on, recorded
    device: Device = MISSING
    precision: Precision = MISSING
    plan: bool | int | str = MISSING  # print memory and time, train nothing: false | true | cpu | 3090 | h200
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ds: DsConfig = field(default_factory=DsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sweep: SweepConfig | None = None  # a search over many jobs; each job itself has none to run
    stage: Any = MISSING  # settings of one of config.specs.SPECS, by stage.name


def register() -> None:
    """Put the dataclasses into Hydra's ConfigStore: `schema` types the root, `schema/stage/NAME` each stage,
    `schema/data/SOURCE` a source with keys of its own, `schema/sweep` a search; and the resolvers
    `tinychat.quotient:A,B`, which is A // B and at least 1, and `tinychat.within:ROOT,NAME`, ROOT/NAME or null."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config, replace=True)
    store.store(group="schema", name="sweep", node=SweepConfig, replace=True)
    for source, settings in DATA.items():
        store.store(group="schema/data", name=source, node=settings, replace=True)
    for spec in SPECS.values():
        store.store(group="schema/stage", name=spec.name, node=spec.settings, replace=True)
    OmegaConf.register_resolver("tinychat.quotient", lambda a, b: max(1, int(a) // int(b)), replace=True)
    OmegaConf.register_resolver("tinychat.within", lambda root, name: root and f"{root}/{name}", replace=True)


def to_config(node: DictConfig) -> Config:
    """The composed (or reloaded) configuration as dataclasses; raises OmegaConf's errors on a wrong key or type,
    UserError for a stage that there is not."""
    typed = OmegaConf.structured(Config)
    typed.stage = OmegaConf.structured(spec_named(node.stage.name).settings)
    typed.data = OmegaConf.structured(DATA.get(node.data.source, DataConfig))
    return OmegaConf.to_object(OmegaConf.merge(typed, node))  # type: ignore[return-value]
