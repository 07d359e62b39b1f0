"""Llama-type models as OpenVINO models: the `engine_model` stage of `engine=openvino`.

The network is written out operation by operation in the form that openvino-genai turns into paged attention: a stateful
decoder with a key/value cache for each layer. Weights, frequencies of the rotary embedding and sizes come from the
loaded transformers model, so that every source of models will do and nothing is rounded; the distributions are compared
(`fidelity`).
"""

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mipo_exp.errors import ModelError
from mipo_exp.generation import fidelity
from mipo_exp.models.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mipo_exp.store.artefacts import Workspace

log = logging.getLogger(__name__)

VERSION = 1  # raised when the same model gives another network: nothing sampled with the old one is used any more

FILE = "openvino_model.xml"  # what openvino-genai looks for in a folder
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Rotary embeddings whose frequencies do not change with the length of the text.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# What a model is tried on: a request in its chat template, and random tokens after it and alone.
PROBE = "Why is the sky blue? Explain it to a child."
RANDOM_TOKENS = 8


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    """What `engine.precision=auto` is on this machine: bfloat16 where the CPU has units for it."""
    if precision != "auto":
        return precision
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in capabilities else "float32"


def properties(precision: str) -> dict[str, str]:
    """How openvino computes in a precision that is not `auto`. Its own choice would be bfloat16 where the CPU has it,
    and 8 bits for the cache."""
    import torch

    kind = PRECISIONS[precision]
    return {
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),  # a process's or worker's share of the cores
        "INFERENCE_PRECISION_HINT": kind,
        "KV_CACHE_PRECISION": kind,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }


def convert(work: "Workspace", runtime: Runtime) -> None:
    """The base model as an OpenVINO model."""
    write_model(runtime, None, work.path / "model")


def write_model(runtime: Runtime, adapter: Path | None, out: Path) -> None:
    """Write the base model, or the policy with its adapter merged in, into the folder `out`, in float32.

    What is written is compared with the model as transformers and PEFT compute it, the adapter unmerged.

    Raises:
        ModelError: the model is of a type that is not written out here, or the written one computes something else.
    """
    import openvino

    check_type(runtime.text_config)
    model: Any = runtime.fresh_model().float()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    rows = _probe(runtime)
    expected = fidelity.reference(model, rows)
    own = fidelity.own_rounding(model, rows, expected)
    network = build_network(model if adapter is None else model.merge_and_unload())
    found = fidelity.gap(_network_log_probs(network, rows), expected)
    if found.exceeds(own):
        what, way = "this model", "use engine=transformers"
        if adapter is not None:
            what = "the policy"
            way = (
                "the trained adapter is kept in paths.cache; run the same command with engine.policy=transformers to "
                "continue from it"
            )
        raise ModelError(
            f"the OpenVINO form of {what} samples from other distributions: it is off by {found}, and the model's own "
            f"rounding by {own}; {way}, and report it"
        )
    log.info("OpenVINO model written; it is off by %s; the model's own rounding is %s", found, own)
    out.mkdir(parents=True, exist_ok=True)
    openvino.save_model(network, out / FILE, compress_to_fp16=False)


def check_type(config: Any) -> None:
    """Raise `ModelError` for a model whose config asks for something that `build_network` does not write."""
    rope = getattr(config, "rope_parameters", None) or {}
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    if getattr(config, "layer_types", None) is None:
        windows = getattr(config, "sliding_window", None) is not None
    problems = {
        f"model_type={config.model_type}": config.model_type not in MODEL_TYPES,
        f"hidden_act={getattr(config, 'hidden_act', None)}": getattr(config, "hidden_act", None) != "silu",
        f"rope_type={rope.get('rope_type')}": rope.get("rope_type", "default") not in ROPE_TYPES,
        "sliding-window attention": windows,
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ModelError(
            f"engine=openvino does not know {', '.join(found)}: it reads models of type {', '.join(MODEL_TYPES)} with "
            "full attention; use engine=transformers"
        )


def build_network(model: "PreTrainedModel") -> Any:
    """An `openvino.Model` with inputs input_ids, attention_mask, position_ids (each (B, T)) and beam_idx (B,), output
    logits (B, T, V), and the cache as state."""
    return _Network(model).build()


class _Network:
    """The operations of one model: H query heads and G key/value heads of D numbers; S positions with the cache."""

    def __init__(self, model: "PreTrainedModel") -> None:
        import openvino
        from openvino import opset6, opset13

        self.ov, self.op, self.state_op = openvino, opset13, opset6
        self.model: Any = model
        config: Any = model.config
        self.eps = config.rms_norm_eps
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.sinks: list[Any] = []

    def build(self) -> Any:
        op, core = self.op, self.model.model
        ids, mask = self._input("input_ids", [-1, -1], np.int64), self._input("attention_mask", [-1, -1], np.int64)
        positions, self.rows = self._input("position_ids", [-1, -1], np.int64), self._input("beam_idx", [-1], np.int32)
        self.batch = op.gather(op.shape_of(ids), self._int([0]), self._int(0))
        self.length = op.gather(op.shape_of(mask), self._int([1]), self._int(0))
        new = op.gather(op.shape_of(ids), self._int([1]), self._int(0))
        self.bias = self._causal_bias(mask, new)
        self.cos, self.sin = self._rotations(positions)
        table = self._weight(core.embed_tokens.weight)
        hidden = op.gather(table, op.convert(ids, "i32"), self._int(0))
        for index, layer in enumerate(core.layers):
            attended = self._attention(index, layer.self_attn, self._norm(hidden, layer.input_layernorm))
            hidden = op.add(hidden, attended)
            hidden = op.add(hidden, self._mlp(layer.mlp, self._norm(hidden, layer.post_attention_layernorm)))
        tied = self.model.lm_head.weight is core.embed_tokens.weight
        head = table if tied else self._weight(self.model.lm_head.weight)
        logits = op.matmul(self._norm(hidden, core.norm), head, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return self.ov.Model([op.result(logits)], self.sinks, [ids, mask, positions, self.rows], "policy")

    def _input(self, name: str, shape: list[int], dtype: Any) -> Any:
        node = self.op.parameter(shape, dtype, name=name)
        node.output(0).get_tensor().set_names({name})
        return node

    def _int(self, value: Any) -> Any:
        return self.op.constant(np.array(value, dtype=np.int64))

    def _float(self, value: Any) -> Any:
        return self.op.constant(np.array(value, dtype=np.float32))

    def _weight(self, tensor: Any) -> Any:
        return self.op.constant(tensor.detach().numpy())

    def _causal_bias(self, mask: Any, new: Any) -> Any:
        """(B, 1, T, S): 0 where a query may look, a large negative number elsewhere."""
        op = self.op
        length, new = op.squeeze(self.length, self._int(0)), op.squeeze(new, self._int(0))
        keys = op.range(self._int(0), length, self._int(1), "i64")
        queries = op.add(op.range(self._int(0), new, self._int(1), "i64"), op.subtract(length, new))
        earlier = op.less_equal(op.unsqueeze(keys, self._int(0)), op.unsqueeze(queries, self._int(1)))
        real = op.unsqueeze(op.convert(mask, "boolean"), self._int([1, 2]))
        allowed = op.logical_and(op.unsqueeze(earlier, self._int([0, 1])), real)
        return op.select(allowed, self._float(0), self._float(-65504))

    def _rotations(self, positions: Any) -> tuple[Any, Any]:
        """Cosines and sines, (B, 1, T, D)."""
        op, rotary = self.op, self.model.model.rotary_emb
        frequencies = self._float(rotary.inv_freq.detach().numpy()[None, None])
        angles = op.multiply(op.convert(op.unsqueeze(positions, self._int(2)), "f32"), frequencies)
        angles = op.unsqueeze(op.concat([angles, angles], -1), self._int(1))
        scale = self._float(rotary.attention_scaling)
        return op.multiply(op.cos(angles), scale), op.multiply(op.sin(angles), scale)

    def _norm(self, hidden: Any, module: Any) -> Any:
        op = self.op
        variance = op.reduce_mean(op.power(hidden, self._float(2)), self._int([-1]), True)
        scale = op.divide(self._float(1), op.sqrt(op.add(variance, self._float(self.eps))))
        return op.multiply(self._weight(module.weight), op.multiply(hidden, scale))

    def _linear(self, hidden: Any, module: Any) -> Any:
        out = self.op.matmul(hidden, self._weight(module.weight), False, True)
        return out if module.bias is None else self.op.add(out, self._weight(module.bias))

    def _mlp(self, module: Any, hidden: Any) -> Any:
        gate = self.op.swish(self._linear(hidden, module.gate_proj))
        return self._linear(self.op.multiply(gate, self._linear(hidden, module.up_proj)), module.down_proj)

    def _attention(self, index: int, module: Any, hidden: Any) -> Any:
        op = self.op

        def split(projection: Any, heads: int, norm: Any = None) -> Any:
            """(B, heads, T, D); Qwen3 norms the queries and keys of each head."""
            parts = op.reshape(self._linear(hidden, projection), self._int([0, 0, heads, self.width]), True)
            return op.transpose(parts if norm is None else self._norm(parts, norm), self._int([0, 2, 1, 3]))

        query = self._rotate(split(module.q_proj, self.heads, getattr(module, "q_norm", None)))
        key = self._rotate(split(module.k_proj, self.groups, getattr(module, "k_norm", None)))
        keys = self._cached(f"past_key_values.{index}.keypresent.{index}.key", key)
        values = self._cached(f"past_key_values.{index}.valuepresent.{index}.value", split(module.v_proj, self.groups))
        attended = op.scaled_dot_product_attention(query, keys, values, self.bias, self._float(module.scaling))
        merged = op.transpose(attended, self._int([0, 2, 1, 3]))
        return self._linear(op.reshape(merged, self._int([0, 0, self.heads * self.width]), True), module.o_proj)

    def _rotate(self, heads: Any) -> Any:
        op, half = self.op, self.width // 2
        first = op.slice(heads, self._int([0]), self._int([half]), self._int([1]), self._int([3]))
        second = op.slice(heads, self._int([half]), self._int([self.width]), self._int([1]), self._int([3]))
        turned = op.concat([op.multiply(second, self._float(-1)), first], -1)
        return op.add(op.multiply(heads, self.cos), op.multiply(turned, self.sin))

    def _cached(self, name: str, new: Any) -> Any:
        """The cache with the new keys or values, each repeated for the query heads of its group: (B, H, S, D)."""
        op = self.op
        empty = op.concat([self.batch, self._int([self.groups]), self._int([0]), self._int([self.width])], 0)
        shape = self.ov.PartialShape([-1, self.groups, -1, self.width])
        past = self.state_op.read_value(op.broadcast(self._float(0), empty), name, self.ov.Type.f32, shape)
        full = op.concat([op.gather(past, self.rows, self._int(0)), new], -2)
        self.sinks.append(self.state_op.assign(full, name))
        if self.groups == self.heads:
            return full
        sizes = [self._int([self.groups]), self._int([self.heads // self.groups]), self.length, self._int([self.width])]
        repeated = op.broadcast(
            op.unsqueeze(full, self._int(2)), op.concat([self.batch, *sizes], 0), broadcast_spec="BIDIRECTIONAL"
        )
        return op.reshape(repeated, self._int([0, self.heads, -1, self.width]), True)


def _probe(runtime: Runtime) -> list[list[int]]:
    """Two rows of token ids of different lengths."""
    import torch

    generator = torch.Generator().manual_seed(0)
    asked = runtime.renderer.prompt_ids([{"role": "user", "content": PROBE}])
    first, second = torch.randint(0, runtime.vocabulary, (2, RANDOM_TOKENS), generator=generator).tolist()
    return [[*asked, *first], second]


def _network_log_probs(network: Any, rows: Sequence[Sequence[int]]) -> Any:
    """The network's log-probabilities at every position of each row, one row after the other: (positions, V), float64.

    It reads all rows at once, the shorter ones padded on the left, in three pieces of which the last is one token, so
    that the cache and the mask are tried too."""
    import openvino
    import torch

    compiled = openvino.Core().compile_model(network, "CPU", properties("float32"))
    request = compiled.create_infer_request()
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    ids = np.array([[0] * (longest - len(row)) + list(row) for row in rows], dtype=np.int64)
    places = np.arange(longest) - (longest - lengths)[:, None]
    cuts = [0, longest - RANDOM_TOKENS // 2, longest - 1, longest]
    found = []
    for start, end in pairwise(cuts):
        inputs = {
            "input_ids": ids[:, start:end],
            "attention_mask": (places[:, :end] >= 0).astype(np.int64),
            "position_ids": np.maximum(places[:, start:end], 0),
            "beam_idx": np.arange(len(rows), dtype=np.int32),
        }
        found.append(torch.from_numpy(request.infer(inputs)["logits"].copy()))
    logits = torch.cat(found, dim=1)
    real = torch.cat([row[-length:] for row, length in zip(logits, lengths.tolist(), strict=True)])
    return torch.log_softmax(real.double(), dim=-1)
