"""mGTE held against its architecture written out here, from a checkpoint of either format, with random weights.

The reference code for the old format is what nobody should run: what it computes is written out again, for one text
without padding, on the weights under their old names.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.models import HOSTILE, built, cosines, counted, require, texts, weights
from tests.fixtures.tiny_models import LENGTH, OLD_GTE, WIDTH, save_mgte, save_old_mgte

from ingestd.devices.check import check
from ingestd.embedders import mgte
from ingestd.embedders._sparse import TINY
from ingestd.errors import ConfigError, DocumentError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.devices.pool import Pool

pytestmark = pytest.mark.models

BOTH = frozenset(VectorKind)


@pytest.fixture(scope="module", autouse=True)
def _installed(offline: None) -> None:
    require("transformers", "torch")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in transformers' own format."""
    return save_mgte(tmp_path_factory.mktemp("mgte"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, native: Path) -> Path:
    """The same model as old checkpoints are."""
    return save_old_mgte(tmp_path_factory.mktemp("old_mgte"), native)


def config(folder: Path, **options: Any) -> mgte.Config:
    """Float32 and small batches, so that there are several."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "batch_tokens": 300}
    return mgte.Config(model=str(folder), **(settings | options))


class Written:
    """The architecture ``new``, with its NTK scaling, written out."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file  # noqa: PLC0415 - takes seconds
        from transformers import AutoTokenizer, GteConfig  # noqa: PLC0415 - the same

        self.weights = load_file(folder / "model.safetensors")
        self.said = json.loads((folder / "config.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=GteConfig(), trust_remote_code=False)

    def __call__(self, text: str) -> tuple[Any, dict[int, float]]:
        """Return a text's dense vector, and its weights by token."""
        import torch  # noqa: PLC0415 - takes seconds

        ids = self.tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"]
        with torch.inference_mode():
            states = self.states(torch.tensor(ids))
            scores = torch.relu(self.linear(states, "classifier"))[:, 0].tolist()
        weights: dict[int, float] = {}
        for token, score in zip(ids, scores, strict=True):
            if token not in {0, 1, 2, 3} and score > weights.get(token, 0):
                weights[token] = score
        return (states[0] / states[0].norm()).numpy(), weights

    def states(self, ids: Any) -> Any:
        """Return the last layer's states, a row a token."""
        import torch  # noqa: PLC0415 - takes seconds

        heads = self.said["num_attention_heads"]
        width = self.said["hidden_size"] // heads
        factor = self.said["rope_scaling"]["factor"]
        base = self.said["rope_theta"] * factor
        frequencies = base ** (-torch.arange(0, width, 2) / width) / factor ** (2 / width)
        angles = torch.outer(torch.arange(len(ids)), frequencies).repeat(1, 2)

        def turned(rows: Any) -> Any:
            left, right = rows.chunk(2, dim=-1)
            return rows * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()

        table = self.weights["new.embeddings.word_embeddings.weight"][ids]
        states = self.norm(
            table + self.weights["new.embeddings.token_type_embeddings.weight"][0], "new.embeddings.LayerNorm"
        )
        for layer in range(self.said["num_hidden_layers"]):
            at = f"new.encoder.layer.{layer}"
            parts = self.linear(states, f"{at}.attention.qkv_proj").chunk(3, dim=-1)
            query, key, value = (part.reshape(len(ids), heads, width).transpose(0, 1) for part in parts)
            scores = turned(query) @ turned(key).transpose(1, 2) / math.sqrt(width)
            mixed = (scores.softmax(dim=-1) @ value).transpose(0, 1).reshape(len(ids), -1)
            states = self.norm(states + self.linear(mixed, f"{at}.attention.o_proj"), f"{at}.attn_ln")
            up, gate = self.linear(states, f"{at}.mlp.up_gate_proj").chunk(2, dim=-1)
            more = self.linear(up * torch.nn.functional.gelu(gate), f"{at}.mlp.down_proj")
            states = self.norm(states + more, f"{at}.mlp_ln")
        return states

    def linear(self, states: Any, name: str) -> Any:
        """Apply a layer, with its bias if it has one."""
        made = states @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return made if bias is None else made + bias

    def norm(self, states: Any, name: str) -> Any:
        """Normalise each row."""
        centred = states - states.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + self.said["layer_norm_eps"]).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


@pytest.mark.parametrize("form", ["native", "old"])
def test_both_are_what_the_architecture_says(
    worker_pool: Pool, form: str, old: Path, request: pytest.FixtureRequest
) -> None:
    """Of every text, in its place: the dense vector, the tokens and their weights, whatever else is in the batch."""
    batch = [*texts(40, longest=50), *HOSTILE]
    written = Written(old)
    dense, sparse = zip(*map(written, batch), strict=True)
    embedder = built(config(request.getfixturevalue(form)), worker_pool)
    for role in Role:
        ours = embedder.embed(batch, role, BOTH)
        assert cosines(ours[VectorKind.DENSE], np.array(dense)).min() > 1 - 1e-5
        np.testing.assert_allclose(ours[VectorKind.DENSE], dense, atol=1e-5)
        for mine, theirs in zip(weights(ours[VectorKind.SPARSE]), sparse, strict=True):
            if theirs or role is Role.QUERY:
                assert mine == pytest.approx(theirs, abs=1e-4)
        check(ours[VectorKind.SPARSE], VectorKind.SPARSE, len(batch), None, role=role)


def test_both_formats_are_equal(worker_pool: Pool, native: Path, old: Path) -> None:
    """The same weights give the very same vectors, though the two formats are two spaces: other bytes."""
    batch = texts(20, longest=50)
    embedders = [built(config(folder), worker_pool) for folder in (native, old)]
    left, right = (embedder.embed(batch, Role.DOCUMENT, BOTH) for embedder in embedders)
    np.testing.assert_allclose(left[VectorKind.DENSE], right[VectorKind.DENSE], atol=1e-6)
    for mine, theirs in zip(weights(left[VectorKind.SPARSE]), weights(right[VectorKind.SPARSE]), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert [embedder.info().kinds for embedder in embedders] == [BOTH, BOTH]
    assert [embedder.info().dimension for embedder in embedders] == [WIDTH, WIDTH]


def test_one_pass_makes_both(native: Path) -> None:
    """Twelve texts in batches of four take three passes of the transformer, for one kind and for both."""
    made = mgte.load(config(native, batch_tokens=24).model_dump(), "cpu")
    batch = ["wing flow oil price"] * 12  # a token each, and two special ones
    for kinds in (BOTH, frozenset({VectorKind.DENSE}), frozenset({VectorKind.SPARSE})):
        with counted("GteEmbeddings") as passes:
            assert set(made.embed(batch, Role.DOCUMENT, kinds)) == kinds
        assert passes == [4, 4, 4]


def test_text_without_a_weight(worker_pool: Pool, old: Path) -> None:
    """A document's empty vector gets the first index that no token has; a query's stays empty."""
    embedder = built(config(old), worker_pool)
    documents, queries = (weights(embedder.embed(["", "wing oil"], role, BOTH)[VectorKind.SPARSE]) for role in Role)
    behind = json.loads((old / "config.json").read_text())["vocab_size"]
    assert documents[0] == {behind: float(TINY)}
    assert queries[0] == {}
    assert documents[1] == queries[1]


def test_half_the_bits(worker_pool: Pool, native: Path) -> None:
    """bfloat16 keeps the length to a part in a million, and the space; it costs little of the direction."""
    whole, half = (built(config(native, dtype=dtype), worker_pool) for dtype in ("float32", "bfloat16"))
    vectors = [made.embed(texts(20, 40), Role.DOCUMENT, BOTH)[VectorKind.DENSE] for made in (whole, half)]
    assert cosines(*vectors).min() > 0.99  # with weights as large as these; the real model's are not
    np.testing.assert_allclose(np.linalg.norm(vectors[1], axis=1), 1, atol=1e-6)
    assert whole.info().space == half.info().space
    assert half.info().dtype == "bfloat16"


def test_positions_keep_their_bits(native: Path) -> None:
    """In bfloat16 the frequencies of positions stay in float32: rounded, a long text's words lose their order."""
    import torch  # noqa: PLC0415 - takes seconds

    half, whole = (mgte._native(native, dtype).gte for dtype in (torch.bfloat16, torch.float32))
    assert half.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert half.rotary_emb.inv_freq.dtype == torch.float32
    np.testing.assert_array_equal(half.rotary_emb.inv_freq, whole.rotary_emb.inv_freq)


def test_limit_of_the_tokenizer_is_what_the_model_sees(worker_pool: Pool, old: Path) -> None:
    """A text of the limit's length is seen whole; what comes after it is not."""
    assert config(old).tokenizer().limit == LENGTH - 2
    short = config(old, max_tokens=16)
    limit = short.tokenizer().limit
    assert limit == 14
    batch = ["oil" + " oil" * times + end for times, end in ((limit - 2, ""), (limit - 1, ""), (limit - 1, " wing"))]
    vectors = built(short, worker_pool).embed(batch, Role.DOCUMENT, BOTH)[VectorKind.DENSE]
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=2e-6)


def test_half_a_surrogate_pair(worker_pool: Pool, native: Path) -> None:
    """It is the document's fault, and the worker lives on."""
    embedder = built(config(native), worker_pool)
    with pytest.raises(DocumentError):
        embedder.embed(["wing", "a\ud800b"], Role.DOCUMENT, BOTH)
    assert len(embedder.embed(["wing"], Role.DOCUMENT, BOTH)[VectorKind.DENSE]) == 1


def test_space(worker_pool: Pool, old: Path, native: Path, tmp_path: Path) -> None:
    """Weights, prompts and how positions turn make the space; batches and lengths do not."""

    def space(folder: Path, **options: Any) -> str:
        made: str = built(config(folder, **options), worker_pool).info().space
        return made

    first = space(old)
    assert first == space(old, batch_tokens=100, max_tokens=20)
    turned = save_old_mgte(tmp_path / "turned", native)
    said = json.loads((turned / "config.json").read_text())
    (turned / "config.json").write_text(json.dumps(said | {"rope_scaling": None}))
    other = save_old_mgte(tmp_path / "other", save_mgte(tmp_path / "new", seed=4))
    assert len({first, space(turned), space(other), space(old, query_prompt="q: ")}) == 4


def test_no_token_classifier(worker_pool: Pool, native: Path, tmp_path: Path) -> None:
    """A dense model alone is refused, where the library would make up a classifier."""
    from transformers import GteModel  # noqa: PLC0415 - takes seconds

    GteModel.from_pretrained(native).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"embedders\.lost: .*lacks weights of mGTE \(classifier\.bias"):
        config(tmp_path).build("lost", worker_pool).info()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "bert"}, "no GTE: its config.json has model_type = 'bert'"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type = 'rms_norm', and only 'layer_norm'"),
        ({"logn_attention_scale": True}, "logn_attention_scale = True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "only 'ntk' can be computed"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}}, "only 'ntk' can be computed"),
        ({"rope_scaling": {"type": "ntk"}}, "no numbers for the scaling"),
    ],
)
def test_what_cannot_be_computed(worker_pool: Pool, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    """Another architecture, or a setting that transformers' class lacks, is refused and named."""
    (tmp_path / "config.json").write_text(json.dumps(OLD_GTE | changed))
    with pytest.raises(ConfigError, match=said):
        config(tmp_path).build("lost", worker_pool).info()


def test_no_code_is_trusted(old: Path) -> None:
    """The old checkpoints' code is not run, even on request."""
    with pytest.raises(ValueError, match="trust_remote_code"):
        config(old, trust_remote_code=True)
