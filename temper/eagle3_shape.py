"""The size of an EAGLE-3 head and of its training as speculators 0.9.0 has them: what `make plan` reckons with.

The head reads hidden states of the model that it drafts for, which one linear map makes one of; its first layer sees that beside
the embedding of the token before, so queries, keys and values are twice as wide on that side (Li et al. 2025, EAGLE-3,
arXiv:2503.01840). Embedding and output head are the model's and do not learn, nor does the model's own output head, whose
probabilities are learnt from. All of it is in float32; its sums are autocast.
"""

from dataclasses import dataclass

from temper import memory
from temper.memory import FP32, Job
from temper.model_shape import Shape

ADAM = 2 * FP32  # bytes of a weight's two moments; Muon's, which is one, is counted as if it were two
# Of one step's logits, where the loss is written out: the model's probabilities and the head's log-probabilities of each step stay;
# the model's logits and two gradients come on top. The fused kernel keeps logits of both, and makes one gradient.
EAGER, FUSED = (2, 3), (1, 2)


@dataclass(frozen=True)
class Head:
    model: Shape
    """That it drafts for, whose widths it has."""
    layers: int
    vocabulary: int
    """Tokens that it can draft."""
    read: int
    """Hidden states of the model."""
    steps: int
    """Tokens that it learns to draft one after the other."""
    length: int
    """Tokens of a pack."""
    on_cpu: bool

    def maps(self) -> int:
        """Weights that each step multiplies a token with, but for the output head."""
        wider = self.model.hidden * (self.model.queries + 2 * self.model.keys)
        return wider + self.layers * self.model.linear() // self.model.layers

    def joined(self) -> int:
        """Weights of the map that makes one of the hidden states."""
        return self.read * self.model.hidden**2

    def scores(self) -> int:
        """Weights of an output head."""
        return self.vocabulary * self.model.hidden

    def trained(self) -> int:
        return self.joined() + self.maps()

    def frozen(self) -> int:
        return self.model.embedding() + 2 * self.scores()

    def attended(self, row: float) -> float:
        """Positions that a token attends in all steps together, in rows of `row` tokens.

        FlexAttention skips what a mask hides: other rows of the pack and later tokens. On a CPU all of the pack is computed, with
        one more of it for every step before.
        """
        return self.length * self.steps * (self.steps + 1) / 2 if self.on_cpu else self.steps * row / 2

    def operations(self, row: float) -> float:
        """A token, of a forward and a backward pass: six a weight that learns, four of the output head, two of the model's."""
        attention = 3 * 4 * self.layers * self.model.queries * self.attended(row)
        return 6.0 * (self.joined() + self.steps * self.maps()) + (4 * self.steps + 2) * self.scores() + attention

    def memory(self, width: int, process: float, slack: float, devices: int) -> dict[str, float]:
        """Peak bytes on a device by what holds them, activations `width` bytes an element; every device has a whole head."""
        job = Job(self.model, rows=self.steps, length=self.length, stored=FP32, width=width, trainable=self.trained())
        written = self.model.heads * self.attended(0) * (FP32 + width) if self.on_cpu else 0.0
        kept = self.layers * (memory.layer(job) + self.length * written)
        each, more = EAGER if self.on_cpu else FUSED
        return {
            "weights": FP32 * (self.trained() + self.frozen()),
            "gradients": FP32 * self.trained() * (2 if devices > 1 else 1),
            "optimizer": ADAM * self.trained(),
            "activations": kept,
            "logits": (FP32 if self.on_cpu else width) * self.length * self.vocabulary * (each * self.steps + more),
            "process": process + slack * kept,
        }

    def states(self, tokens: float, width: int) -> float:
        """Bytes of the hidden states of so many tokens: those that are read, and the last."""
        return tokens * (self.read + 1) * self.model.hidden * width
