"""From one attention to another: what a linear mechanism learns from softmax (arXiv 2402.04347, 2410.10254).

Teacher and student differ in their mixers only. Those of this package share the names of their projections, so the
teacher's weights go to the student by name, and what the student has beside them is new.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tsla.mixers import (
    HeadMixer,
    LinformerAttention,
    Mixed,
    Mixer,
    TaylorPolyAttention,
    TaylorShiftAttention,
    WindowAttention,
)
from tsla.mixers.base import MODES
from tsla.mixers.features import FeatureAttention
from tsla.models.block import Block
from tsla.ops.types import full_precision

SMALLEST = 1e-12  # a weight below it counts as this much in a logarithm

TransferLoss = Callable[[HeadMixer, HeadMixer, Tensor, Tensor | None], Tensor]


def attention_maps(mixer: HeadMixer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights ``(b, h, n, n)`` by which a mixer averages values, those of query i in row i, in float32 at least.

    Whatever a mechanism does inside, its output is linear in the values: with the identity for values it is the
    weights. Quadratic, so for training and measuring only; see `why_no_maps`.

    Args:
        mixer: the mechanism.
        x: ``(b, n, dim)``, what it mixes.
        mask: ``(b, n)`` bool, True = real token; rows of other tokens mean nothing.
    """
    with full_precision(x.device):
        x = x.to(mixer.to_q.weight.dtype)  # under autocast it may be bfloat16
        q, k, v = mixer.heads_of(x, mask)
        identity = torch.eye(x.shape[1], dtype=v.dtype, device=v.device).expand(*v.shape[:3], -1)
        return mixer.attend(q, k, identity, x, mask)


def why_no_maps(mixer: HeadMixer) -> str | None:
    """Why a mechanism's weights are no attention map that could be held against softmax's; None if they are one."""
    match mixer:
        case TaylorPolyAttention():
            return "it weighs pairs of tokens, not tokens"
        case TaylorShiftAttention(scale_output=True):
            return "its output is no average: mixer.scale_output multiplies it by sqrt(keys seen / head_dim)"
        case FeatureAttention(normalize=False):
            return "its output is no average: its weights are not divided by their sum"
        case FeatureAttention() if not mixer.feature_map.positive:
            return "its weights may be below 0"
        case LinformerAttention():
            return "its output is no average: it reads sums of values, of which some are subtracted"
        case WindowAttention():
            return "its weights outside the window are 0"
        case _:
            return None


def visible_keys(x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Which keys each real query sees, ``(b, 1, n, n)`` bool; the row of a masked query is empty."""
    b, n = x.shape[:2]
    visible = torch.ones(b, 1, n, n, dtype=torch.bool, device=x.device)
    if causal:
        visible = visible.tril()
    return visible if mask is None else visible & mask[:, None, None, :] & mask[:, None, :, None]


def map_loss(teacher: HeadMixer, student: HeadMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Cross-entropy of the maps in nats, - mean_i sum_j a_ij log a'_ij over heads and real queries (arXiv 2402.04347).

    Its least value is the entropy of a, where a' = a. Arguments as in `attention_maps`; a has no gradient.
    """
    with torch.no_grad():
        target = attention_maps(teacher, x, mask)
    own = attention_maps(student, x, mask)
    rows = visible_keys(x, mask, causal=student.causal).any(-1).expand(target.shape[:-1])
    crossed = -(target * own.clamp_min(SMALLEST).log()).sum(-1)
    return crossed[rows].sum() / rows.sum().clamp_min(1)


def output_loss(teacher: HeadMixer, student: HeadMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error of what each head gives its real queries, before gate and projection (arXiv 2410.10254)."""
    with full_precision(x.device):
        x = x.to(student.to_q.weight.dtype)
        with torch.no_grad():
            target = teacher.attend(*teacher.heads_of(x, mask), x, mask)
        own = student.attend(*student.heads_of(x, mask), x, mask)
        rows = visible_keys(x, mask, causal=student.causal).any(-1).expand(target.shape[:-1])
        return (own - target).square().mean(-1)[rows].sum() / rows.sum().clamp_min(1)


class Pair(Mixer):
    """A teacher's mixer and its student's in one place of a model.

    In training the model goes on with what the teacher makes of the tokens, so that every layer's student sees the
    teacher's hidden states, and adds the student's loss. In evaluation it is the student's model.

    Args:
        teacher, student: of the same width and direction.
        loss: what the student has to learn; None: nothing, the pair only listens.
        weight: of this layer's loss.
    """

    supports = MODES

    def __init__(self, teacher: HeadMixer, student: HeadMixer, loss: TransferLoss | None, weight: float = 1.0) -> None:
        super().__init__(teacher.dim, width=teacher.width, causal=teacher.causal)
        self.teacher, self.student, self.loss, self.weight = teacher, student, loss, weight
        self.heard: tuple[Tensor, Tensor | None] | None = None  # tokens and mask of the latest call in training

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        if not self.training:
            return self.student.mix(x, context, mask=mask, side=side, cu_seqlens=cu_seqlens)
        self.heard = (x, mask)
        with torch.no_grad():
            mixed = self.teacher.mix(x, context, mask=mask, side=side, cu_seqlens=cu_seqlens)
        aux = None if self.loss is None else self.weight * self.loss(self.teacher, self.student, x, mask)
        return mixed._replace(aux=aux)


def head_mixers(model: nn.Module) -> list[HeadMixer]:
    """The mixers of a model, layer by layer.

    Raises:
        ValueError: one that is not queries, keys and values around a mechanism.
    """
    found = []
    for layer, block in enumerate(m for m in model.modules() if isinstance(m, Block)):
        if not isinstance(block.mixer, HeadMixer):
            raise ValueError(f"the {type(block.mixer).__name__} of layer {layer} has no queries and keys of its own, "
                             "so there is no attention of it to compare")  # fmt: skip
        found.append(block.mixer)
    return found


def adopt(student: nn.Module, teacher: nn.Module) -> frozenset[str]:
    """Fill `student` with the teacher's weights, by name; returns the names of the parameters that it alone has.

    Raises:
        ValueError: weights of the teacher that the student has no place for, with their names.
    """
    own, given = student.state_dict(), teacher.state_dict()
    if lost := [name for name, x in given.items() if name not in own or own[name].shape != x.shape]:
        raise ValueError(f"the student has no place for {', '.join(lost[:3])} of the teacher"
                         + f" and {len(lost) - 3} more" * (len(lost) > 3))  # fmt: skip
    student.load_state_dict({**own, **given})
    return frozenset(name for name, _ in student.named_parameters() if name not in given)


def paired(teacher: nn.Module, student: nn.Module, loss: TransferLoss | None = None) -> nn.Module:
    """A copy of the teacher with a `Pair` in the place of each mixer, whose students are the student's own modules.

    Its `run` gives the teacher's logits and the mean of the layers' losses in training, the student's logits in
    evaluation. The teacher's dropout, if it has any, is at work in training: build it without.
    """
    model = copy.deepcopy(teacher)
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    for block, one, other in zip(blocks, head_mixers(model), head_mixers(student), strict=True):
        block.mixer = Pair(one, other, loss, 1 / len(blocks))
    return model


def pairs_of(model: nn.Module) -> list[Pair]:
    """The pairs of a model, layer by layer."""
    return [m for m in model.modules() if isinstance(m, Pair)]


def learn_only(model: nn.Module, learnt: Callable[[str], bool]) -> int:
    """Freeze all but the parameters of the students that `learnt` says, by their names within a mixer.

    Returns how many numbers are left to learn.
    """
    model.requires_grad_(False)
    for pair in pairs_of(model):
        for name, parameter in pair.student.named_parameters():
            parameter.requires_grad_(learnt(name))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
