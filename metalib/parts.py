"""Parts of a model: which weights are learned and which adapt, low-rank updates, features under its last matrix."""

import copy
from collections.abc import Collection
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from metalib.errors import BadInput

Adapts = Literal["all", "head", "bias", "lora"]


def freeze_lower_layers(model: PreTrainedModel, layers: int) -> None:
    """Freeze the embeddings and the lowest `layers` encoder layers; 0 freezes nothing.

    Raises:
        BadInput: no list of modules in the model (where its layers stand) is as long as that, or the layers share
            their weights.
    """
    if layers == 0:
        return
    if getattr(model.config, "num_hidden_groups", None):  # ALBERT
        raise BadInput(f"frozen_layers={layers}: the layers of {type(model).__name__} share their weights, so none of "
                       "them can stay as it is — leave frozen_layers out")  # fmt: skip
    stacks = [m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) >= layers]
    if not stacks:
        most = max((len(m) for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList)), default=0)
        raise BadInput(f"frozen_layers={layers}: {type(model).__name__} has {most} layers — lower it")
    frozen = [stacks[0][i] for i in range(layers)]
    frozen += [child for name, child in model.base_model.named_children() if "embeddings" in name]
    frozen.append(model.get_input_embeddings())
    for module in frozen:
        module.requires_grad_(False)


def word_table(model: nn.Module, names: Collection[str]) -> tuple[str, nn.Embedding | None]:
    """Name and module of the word embeddings, where they adapt and one module uses them, as a plain table.

    Else "" and None.
    """
    try:
        table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except (AttributeError, NotImplementedError):  # a model that does not say where it has them
        return "", None
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq:
        return "", None
    users = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is table.weight]
    return (users[0], table) if len(users) == 1 and users[0] in names else ("", None)


def add_lora(model: PreTrainedModel, rank: int) -> None:
    """Put low-rank updates on all matrices of the encoder: W + 2 B A, A (rank, in), B (out, rank) = 0 at first.

    (Hu et al. 2022, eq. 3.) They are trained beside what was trained before; matrices of frozen layers get them too.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes a second to import, and few need it

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    inject_adapter_in_model(config, model.base_model)
    for parameter in trained:  # peft freezes them
        parameter.requires_grad_(True)


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with matrices W + 2 B A, as plain as before `add_lora`; the model itself if it has none."""
    if not any(".lora_A." in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model


def adaptable(model: nn.Module, names: Collection[str], adapts: Adapts) -> list[str]:
    """Which of the trained parameters move in an inner loop.

    `all` of them; `head`: what stands on top of the encoder; `bias`: the head and every bias (Ben Zaken et al. 2022);
    `lora`: the head and the low-rank updates. A learner's own modules (`own.…`) adapt with `all` only.

    Raises:
        BadInput: none of that kind is trained.
    """
    if adapts == "all":
        return list(names)
    encoder = f"{model.base_model_prefix}."
    head = [name for name in names if not name.startswith((encoder, "own."))]
    ending = {"head": (), "bias": ("bias",), "lora": (".lora_A.default.weight", ".lora_B.default.weight")}[adapts]
    inside = [name for name in names if name.startswith(encoder) and name.endswith(ending)] if ending else []
    if not head or (ending and not inside):
        raise BadInput(f"adapt={adapts!r}: {type(model).__name__} trains no such parameter — take adapt='all'")
    return [name for name in names if name in {*head, *inside}]


def final_layer(model: PreTrainedModel) -> nn.Linear:
    """The last matrix of a classifier: its input is what the learners without a classifier call the features of a text.

    Raises:
        BadInput: there is no such layer.
    """
    encoder = f"{model.base_model_prefix}."
    found = [module for name, module in model.named_modules()
             if isinstance(module, nn.Linear) and not name.startswith((encoder, "own."))]  # fmt: skip
    if not found or found[-1].out_features != model.config.num_labels:
        raise BadInput(f"{type(model).__name__} has no linear layer on top — take a learner that needs no features")
    return found[-1]


def features(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, hidden) what the classifier's last matrix gets to see, from a batch (its labels are not looked at).

    So any classifier of Transformers has features, and a linear rule on them is again a classifier.
    """
    caught: list[torch.Tensor] = []
    handle = final_layer(model).register_forward_pre_hook(lambda layer, given: caught.append(given[0]))
    try:
        model(**{name: column for name, column in inputs.items() if name != "labels"})
    finally:
        handle.remove()
    if caught[0].dim() != 2:
        raise BadInput(f"{type(model).__name__} classifies every token — take an encoder that has one vector a text")
    return caught[0].to(torch.promote_types(caught[0].dtype, torch.float32))  # not in bfloat16
