"""The daemon's side of a model behind a provider's API: its options, its batches, its turns, and what it was paid for.

Owns what all HTTP embedders have in common. A call's texts are cut into requests by the provider's limits in inputs and
tokens; several are in flight at a time, each in its turn (``_pace``). A request that the provider refuses for its texts
is halved until the bad text stands alone, and that one is believed to be bad only where a plain sentence passes; an
answer that is bad as a whole has that sentence asked first, for every half would be paid for. What was embedded before
a call failed is kept, for the caller comes back with the same texts: nothing is paid for twice.

Providers are told to refuse a text that is longer than their model sees, not to cut it: what they cut they do not say.
It is asked for again to be cut, and counted; where a provider cuts whatever it is told, our own count has to do.

A provider's file says what goes on the wire and what comes back (``Wire``), and nothing else. One request at a time
with a client library's own tries was turned down: it is limited by the round trip, and a bad text fails its batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from ingestd.devices.check import LARGEST_INDEX, BadVectorsError, check
from ingestd.embedders import _folder
from ingestd.embedders._calls import Batch, Call, Fault, Kept
from ingestd.embedders._client import Client, RefusedTexts, TooFast, Unanswered, Unfit
from ingestd.embedders._location import locate
from ingestd.embedders._pace import Pace
from ingestd.embedders._sparse import mark_empty
from ingestd.embedders._tokenizer import FileTokenizer, PieceTokenizer
from ingestd.errors import ConfigError, DocumentError, Stopped, UnavailableError
from ingestd.model import ModelInfo, Role, SparseVector, SparseVectors, VectorKind, canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.embedders._calls import Vector
    from ingestd.model import DenseVector, Vectors
    from ingestd.ports import Tokenizer

PROBE = "A text to see that the model works."
LONGEST = 150.0
"""Seconds that a call may take, and one answer more. What is slower counts as away; what it answered is kept."""
TRIES = 5
"""Refusals of one request for being too fast, one after the other, that count as an outage."""
WINDOW = 1_024
"""The least texts of a call where there are as many: between two calls nothing is in flight."""
LARGEST_WINDOW = 4_096
"""The most: with their vectors and the answers that these are read from, they are in memory together."""
_ABOUT_LENGTH = ("token", "length", "too long", "too large")
"""Words in a refusal that is about a text's length."""


class RemoteConfig(BaseModel):
    """The options of every model behind a provider's API."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)  # a key may be among it

    outputs: ClassVar[tuple[str, ...]] = ("dense",)
    inputs: ClassVar[int] = 100
    """The provider's own limit on the texts of a request; ``batch_texts`` is for one that has moved it."""
    tokens: ClassVar[int] = 100_000
    """The same on tokens."""
    length: ClassVar[int] = 8_000
    """The most tokens of a text that its models see, where ``max_tokens`` does not say."""
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "refused"
    """What becomes of a longer text there: it is cut where the request says so, it is refused, or cut silently."""

    model: str = Field(min_length=1, description="The model's name, as the provider has it.")
    base_url: str = Field(description="Where the API is; default: the provider's own.")
    api_key: SecretStr | None = Field(
        default=None, description="From the environment or a secret: INGESTD_EMBEDDERS__NAME__API_KEY."
    )
    dimension: int | None = Field(
        default=None, ge=1, le=32_768, description="Numbers of a vector, where the model lets one choose."
    )
    max_tokens: int | None = Field(
        default=None, ge=8, description="The most tokens of a text that the model sees; not set: the provider's usual."
    )
    too_long: Literal["truncate", "fail"] = Field(
        default="truncate", description="What becomes of a longer text: its beginning counts, or its document fails."
    )
    tokenizer_model: str | None = Field(
        default=None,
        description="A folder, package:NAME/PATH or a name on the hub with the model's tokenizer.json; not set: tokens "
        "are estimated, about four letters each.",
    )
    document_prompt: str = Field(default="", description="What is put before each chunk.")
    query_prompt: str = Field(default="", description="What is put before a query.")
    batch_texts: int | None = Field(default=None, ge=1, description="The most texts of a request; not set: the limit.")
    batch_tokens: int | None = Field(default=None, ge=1, description="The same of tokens.")
    concurrency: int = Field(default=4, ge=1, le=64, description="Requests in flight at a time.")
    timeout_seconds: float = Field(default=60.0, gt=0, le=120, description="The longest that an answer may take.")
    requests_per_minute: float | None = Field(default=None, gt=0, description="The most; not set: found out.")
    tokens_per_minute: float | None = Field(default=None, gt=0, description="The most; not set: found out.")
    price_per_million_tokens: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="In any currency: makes the cost a metric."
    )
    max_cost_per_day: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Intake pauses when a day (UTC) has cost that much."
    )
    ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM; default: the system's.")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        try:
            host = parse_url(value).host
        except LocationParseError:
            host = None
        if not host:
            raise ValueError("has no host, or a port that is none")
        return value.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        key = value.get_secret_value().strip()  # whoever writes a file with echo ends it with a line end
        if not (key.isascii() and key.isprintable()):
            raise ValueError("has characters that no header can carry")  # without the key: this is shown
        return SecretStr(key)

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost_per_day is not None and self.price_per_million_tokens is None:
            raise ValueError("max_cost_per_day needs price_per_million_tokens")
        return self

    def tokenizer(self) -> Tokenizer:
        """Return what counts a text's tokens, with room left for the prompt of documents.

        Raises:
            ConfigError: There is no such tokenizer, or the prompt leaves no room.
        """
        length = self.max_tokens or self.seen
        counting = self._tokenizer(None)
        room = length - counting.special_tokens() - counting.count(self.document_prompt)
        if room < 1:
            raise ConfigError(f"document_prompt: the prompt fills all of the {length} tokens that the model takes")
        return self._tokenizer(room)

    def _tokenizer(self, limit: int | None) -> FileTokenizer | PieceTokenizer:
        if self.tokenizer_model is None:
            return PieceTokenizer(limit=limit)
        try:
            folder = locate(self.tokenizer_model, None, weights=False)
        except ConfigError as error:
            raise ConfigError(*(fault.replace("model:", "tokenizer_model:", 1) for fault in error.faults)) from error
        return FileTokenizer(_folder.tokenizer_file(folder), limit=limit)

    @property
    def seen(self) -> int:
        """The most tokens of a text that the model sees."""
        return self.length

    @property
    def window(self) -> int:
        """How many texts a call should have: full requests, several in flight, and no more than a minute allows."""
        texts = self.batch_texts or self.inputs
        round_ = texts * self.concurrency
        window = min(round_ * math.ceil(WINDOW / round_), max(texts, LARGEST_WINDOW // texts * texts))
        if self.requests_per_minute is not None:
            window = min(window, texts * max(1, int(self.requests_per_minute)))
        return window

    def prompt(self, role: Role) -> str:
        """Return what is put before a text of a role."""
        return self.query_prompt if role is Role.QUERY else self.document_prompt

    def headers(self) -> dict[str, str]:
        """Return what the provider knows us by."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key.get_secret_value()}"}

    def on(self, name: str, wire: Wire, *, needs_key: bool = True) -> RemoteEmbedder:
        """Return the embedder that speaks to the provider by ``wire``.

        Raises:
            ConfigError: There is no key, and the provider wants one.
        """
        if needs_key and (self.api_key is None or not self.api_key.get_secret_value()):
            variable = f"INGESTD_EMBEDDERS__{name.upper()}__API_KEY"
            raise ConfigError(f"api_key: missing; set {variable}, or put it into a file of that name among the secrets")
        return RemoteEmbedder(name, self, wire)


class _BadAnswer(RefusedTexts):
    """An answer in which no text has a usable vector."""


class Request(NamedTuple):
    """What a provider is asked."""

    path: str
    payload: dict[str, Any]


class Wire(Protocol):
    """What goes on the wire to a provider, and what comes back."""

    kind: VectorKind
    inputs: int | None
    """The most texts of a request, where the server has said so."""
    known: bool
    """Whether ``space`` needs no answer of the provider."""

    def request(self, texts: Sequence[str], role: Role, *, cut: bool) -> Request:
        """Return the request for the vectors of texts, prompts included; ``cut``: too long ones are to be cut."""
        ...

    def vectors(self, answer: Any, count: int) -> Vectors:  # noqa: ANN401 - JSON
        """Return what an answer holds, in the order of the texts.

        Raises:
            KeyError, TypeError, ValueError, IndexError: It is not what the provider's documentation says.
        """
        ...

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return how many tokens the provider counted; None: it does not say."""
        ...

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return what the vectors depend on beside model, dimension and prompts; without ``client`` where ``known``."""
        ...


class RemoteEmbedder:
    """A model behind an API: implements ``ports.Embedder``. Safe to call from several threads.

    Args:
        name: The embedder's.
        config: Its options.
        wire: Speaks with the provider.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, name: str, config: RemoteConfig, wire: Wire, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._config = config
        self._wire = wire
        self._clock = clock
        self._client = Client(
            name,
            config.base_url,
            config.headers(),
            timeout=config.timeout_seconds,
            connections=config.concurrency,
            ca_file=config.ca_file,
        )
        self._pace = Pace(clock, config.requests_per_minute, config.tokens_per_minute)
        self._kept = Kept()
        self._counting = config.tokenizer()
        self._closed = threading.Event()
        self._places = threading.BoundedSemaphore(config.concurrency)
        self._loading = threading.Lock()
        self._counts = threading.Lock()
        self._unsound = False
        """It had no vector for a plain sentence: that is asked first, before anything else is paid for."""
        self._info: ModelInfo | None = None
        self.tokens_used = 0
        """Tokens that were paid for, as the provider counts them, or as we do where it does not say."""
        self.texts_cut = 0
        """Texts that were longer than the model sees."""

    def info(self) -> ModelInfo:
        """Return what the model is; the first time, after asking it for a vector.

        Raises:
            ConfigError: The provider refuses the key, the model or the options.
            UnavailableError: It does not answer.
            Stopped: The embedder is closed.
        """
        with self._loading:
            if self._info is None:
                self._info = self._introduced()
            return self._info

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text.

        Raises:
            DocumentError: The provider refuses one of the texts, or it is too long and ``too_long`` is ``fail``.
            UnavailableError: The provider is down, or refuses whatever it is asked.
            Stopped: The embedder is closed.
        """
        kind = self._wire.kind
        if kind not in kinds:
            return {}
        self.info()
        asked = [self._fitted(text) for text in texts]
        known = self._kept.take([(role, text) for text in asked])
        missing = list(dict.fromkeys(text for text in asked if (role, text) not in known))
        known |= self._ask(missing, role, known)
        found = [known[role, text] for text in asked]
        faults = [(at, vector) for at, vector in enumerate(found) if isinstance(vector, Fault)]
        if faults:
            # A text alone is told its fault, and that is its end; of several, the caller comes back for each.
            self._kept.put(known if len(asked) > 1 else {})
            at, fault = faults[0]
            raise DocumentError(
                f"{self.name}: of {len(asked)} texts, {len(faults)} are refused, text {at} first: {fault}"
            )
        return {kind: self._block(cast("list[Vector]", found))}

    def close(self) -> None:
        """Let calls that are in flight, and later ones, raise Stopped."""
        self._closed.set()
        self._client.close()

    def _introduced(self) -> ModelInfo:
        """Ask the provider for a vector, and return what can be said of the model then."""
        dimension = self._config.dimension
        dense = self._wire.kind is VectorKind.DENSE
        try:
            vector = self._ask([PROBE], Role.DOCUMENT, {})[Role.DOCUMENT, PROBE]
            space = self._wire.space(self._client)
        except TooFast as error:
            raise UnavailableError(self._client.dependency, str(error), wait=error.wait, refused=True) from error
        except RefusedTexts as error:
            raise ConfigError(f"{self._client.host} does not say what it runs: {error}") from error
        except UnavailableError:
            # A model of a known dimension need not be there: the daemon starts, and holds what comes for it.
            if dimension is None or not self._wire.known:
                raise
            space = self._wire.space(None)
        else:
            if isinstance(vector, Fault):
                raise ConfigError(
                    f"{self._client.host} refuses a plain sentence: {vector}; look at model and dimension"
                )
            if dense:
                given = len(cast("DenseVector", vector))
                if dimension not in {None, given}:
                    raise ConfigError(f"dimension: {dimension} is set, and the provider's vectors have {given} numbers")
                dimension = given
        prompts = [self._config.prompt(role) for role in (Role.DOCUMENT, Role.QUERY)]
        said = [type(self._config).__module__, self._config.model, dimension if dense else None, prompts, space]
        return ModelInfo(
            kinds=frozenset({self._wire.kind}),
            dimension=dimension if dense else None,
            space=hashlib.sha256(canonical_json(said)).hexdigest(),
            dtype="float32",
            device=self._client.host,
        )

    def _fitted(self, text: str) -> str:
        """Return a text as it is asked for: its beginning, if it is longer than the model sees and we can tell.

        Raises:
            DocumentError: It cannot be asked for at all.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            said = f"the text holds half a surrogate pair at character {error.start}, which no encoding can write"
            raise DocumentError(f"{self.name}: {said}") from error
        limit, exact = self._counting.limit, self._config.tokenizer_model is not None
        # Where tokens are estimated, the provider refuses what is too long: a guess would cut texts that fit. Of one
        # that cuts silently the estimate is all that there is, and nothing but the count is used of it.
        if limit is None or len(text) <= limit or not (exact or self._config.cutting == "silent"):
            return text
        short = self._cut(text, limit)
        if short == text:
            return text
        if self._config.too_long == "fail":
            said = f"a chunk has more than the {limit} tokens that the model sees: cut smaller chunks (max_tokens)"
            raise DocumentError(f"{self.name}: {said}")
        self._count_cut()
        return short if exact else text

    def _cut(self, text: str, limit: int) -> str:
        offsets = self._counting.offsets(text)
        return text if len(offsets) <= limit else text[: int(offsets[limit - 1][1])]

    def _count_cut(self) -> None:
        with self._counts:
            self.texts_cut += 1

    def _ask(
        self, texts: Sequence[str], role: Role, known: Mapping[tuple[Role, str], Vector | Fault]
    ) -> dict[tuple[Role, str], Vector | Fault]:
        """Return what becomes of each text; where the call fails, all that is known is kept for the next."""
        if not texts:
            return {}
        batches = [Batch(some) for some in self._batches(texts, role)]
        if self._unsound:
            self._run(
                Call(role, [Batch([PROBE], judge=True)], self._clock() + LONGEST, self._pace.give_up, self._kept.put)
            )
        call = Call(role, batches, self._clock() + LONGEST, self._pace.give_up, self._kept.put)
        try:
            self._run(call)
        except BaseException:
            self._kept.put({**known, **call.found})
            raise
        return call.found

    def _run(self, call: Call) -> None:
        """Have a call's batches asked for, several at a time."""
        for _ in range(min(self._config.concurrency, call.waiting)):
            # Not of a pool: such threads are waited for at the end of the process, for as long as an answer may take.
            threading.Thread(target=self._work, args=(call,), name=f"provider-{self.name}", daemon=True).start()
        while not call.over(0.1):
            if self._closed.is_set():
                raise Stopped
        if call.error is not None:
            raise Stopped if self._closed.is_set() else call.error

    def _batches(self, texts: Sequence[str], role: Role) -> Iterator[list[str]]:
        """Yield the texts of each request."""
        most = self._config.batch_texts or self._wire.inputs or self._config.inputs
        limit = None if self._config.cutting == "silent" else self._counting.limit
        room = self._config.batch_tokens or self._config.tokens
        if self._config.tokens_per_minute is not None:
            room = min(room, int(self._config.tokens_per_minute))  # a request of more would never pass
        prompt = self._counting.count(self._config.prompt(role))
        batch: list[str] = []
        tokens = 0
        for text in texts:
            size = prompt + self._counting.count(text)
            if limit is not None and size - prompt > limit:
                yield [text]  # it is probably refused: alone it costs no other
                continue
            if batch and (len(batch) == most or tokens + size > room):
                yield batch
                batch, tokens = [], 0
            batch.append(text)
            tokens += size
        if batch:
            yield batch

    def _work(self, call: Call) -> None:
        """Ask for one batch after the other: in a thread of its own."""
        while (batch := call.take()) is not None:
            try:
                found, more = self._answer(call, batch)
            except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
                call.fail(error)
            else:
                call.settle(found, more)

    def _answer(self, call: Call, batch: Batch) -> tuple[Mapping[str, Vector | Fault], list[Batch]]:
        """Return what a batch's answer says of its texts, and what is to be asked again.

        Raises:
            UnavailableError, ConfigError, Stopped: The call is over.
        """
        try:
            return self._asked(call, batch)
        except TooFast as error:
            rest = self._pace.refused(error.wait)
            if batch.refusals + 1 < TRIES and self._clock() + rest < call.until:
                return {}, [batch._replace(refusals=batch.refusals + 1)]
            self._pace.give_up()
            raise UnavailableError(self._client.dependency, str(error), wait=rest, refused=True) from error
        except Unfit as error:
            if self._info is None:
                raise
            # Not as refused: what stands before a provider may answer so to one text, and pass a plain sentence.
            raise UnavailableError(self._client.dependency, str(error)) from error

    def _asked(self, call: Call, batch: Batch) -> tuple[Mapping[str, Vector | Fault], list[Batch]]:
        """Ask; what is refused for its texts is halved, and judged when it is one."""
        texts = batch.texts
        try:
            return self._exchange(call, batch)
        except RefusedTexts as error:
            refused = error
        if batch.judge:
            raise self._unfit(call, refused)
        if isinstance(refused, _BadAnswer) and self._info is not None and not self._passes(call):
            raise self._unfit(call, refused)
        if len(texts) > 1:
            middle = len(texts) // 2
            return {}, [Batch(texts[:middle]), Batch(texts[middle:])]
        # Behind the handler: this asks again, and what comes of that is the caller's to translate.
        return self._alone(call, texts[0], refused), []

    def _exchange(
        self, call: Call, batch: Batch, *, cut: bool = False
    ) -> tuple[Mapping[str, Vector | Fault], list[Batch]]:
        """Ask once. Texts whose vectors are no good are asked for again, alone."""
        texts = batch.texts
        prompted = [self._config.prompt(call.role) + text for text in texts]
        request = self._wire.request(prompted, call.role, cut=cut)
        tokens = sum(map(self._counting.count, prompted))
        self._await_turn(call, tokens, again=batch.refusals > 0)
        with self._in_flight(call, tokens):
            try:
                answer, headers = self._client.post(request.path, request.payload)
            except Unanswered:
                self._pay(tokens)  # it was sent, and may have been worked on
                raise
            self._pace.answered(headers, tokens)
        self._pay(self._counted(answer, tokens))
        try:
            vectors = self._wire.vectors(answer, len(texts))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            said = f"{self._client.host} answers with something else than vectors: {type(error).__name__}: {error}"
            raise UnavailableError(self._client.dependency, said) from error
        if isinstance(vectors, SparseVectors) and call.role is Role.DOCUMENT:
            vectors = mark_empty(vectors, LARGEST_INDEX)
        faults = self._faults(vectors, len(texts), call.role)
        if faults and len(faults) == len(texts):
            raise _BadAnswer(f"the provider's vector {faults[0]}")
        if list(texts) == [PROBE]:
            self._unsound = False
        good = {text: vectors[at] for at, text in enumerate(texts) if at not in faults}
        return good, [Batch([texts[at]]) for at in faults]

    def _counted(self, answer: Any, estimate: int) -> int:  # noqa: ANN401 - JSON
        """Return the tokens that an answer says it cost, whatever else is wrong with it; where it does not, ours."""
        try:
            counted = self._wire.tokens(answer)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            counted = None
        return estimate if counted is None else counted

    def _pay(self, tokens: int) -> None:
        with self._counts:
            self.tokens_used += tokens

    @contextlib.contextmanager
    def _in_flight(self, call: Call, tokens: int) -> Iterator[None]:
        """Be one of so many requests that are in flight, whoever's calls they are of; it had its turn."""
        try:
            while not self._places.acquire(timeout=0.1):
                if self._closed.is_set() or call.error is not None:
                    raise Stopped
            try:
                yield
            finally:
                self._places.release()
        finally:
            self._pace.ended(tokens)

    def _faults(self, vectors: Vectors, count: int, role: Role) -> Mapping[int, str]:
        """Return what is wrong with the vector of which text.

        Raises:
            _BadAnswer: It is the answer as a whole, or no text's alone.
        """
        dimension = None if self._info is None else self._info.dimension
        if dimension is None and isinstance(vectors, np.ndarray):
            dimension = vectors.shape[1]
        try:
            check(vectors, self._wire.kind, count, dimension, role=role)
        except BadVectorsError as error:
            if not error.faults:
                raise _BadAnswer(str(error)) from error
            return error.faults
        return {}

    def _alone(self, call: Call, text: str, error: RefusedTexts) -> Mapping[str, Vector | Fault]:
        """Return the fault of a text that was refused alone.

        Raises:
            UnavailableError: A plain sentence is refused too, so it is not the text.
        """
        if text == PROBE or self._info is None:
            return {text: Fault(error)}
        if self._config.too_long == "truncate" and not isinstance(error, _BadAnswer):
            for short, cut in self._shorter(text, error):
                with contextlib.suppress(RefusedTexts):
                    found, _ = self._exchange(call, Batch([short]), cut=cut)
                    self._count_cut()
                    return {text: found[short]}
        if not self._passes(call):
            raise self._unfit(call, error) from error
        return {text: Fault(error)}

    def _shorter(self, text: str, error: RefusedTexts) -> Iterator[tuple[str, bool]]:
        """Yield what to ask in place of a text that was refused, where it may be for its length: the beginning of it.

        By the provider itself where it cuts: of a text that it refuses for anything else it cuts nothing. Else by our
        count, and less of it where that was an estimate and the refusal speaks of the length.
        """
        if self._config.cutting == "asked":
            yield text, True
            return
        limit = self._counting.limit
        said = any(word in str(error).lower() for word in _ABOUT_LENGTH)
        for part in (1, 2, 4) if said else (1,):
            if limit is not None and (short := self._cut(text, max(1, limit // part))) != text:
                yield short, False

    def _passes(self, call: Call) -> bool:
        """Return whether a plain sentence passes: asked for once a call."""
        with call.judging:
            if call.sound is None:
                try:
                    self._exchange(call, Batch([PROBE]))
                    call.sound = True
                except RefusedTexts:
                    call.sound = False
            return call.sound

    def _unfit(self, call: Call, error: RefusedTexts) -> UnavailableError:
        """Return what it means that the provider has no vector for a plain sentence either."""
        call.sound = False
        self._unsound = True
        said = f"{self._client.host} refuses every text: {error}; look at model and dimension"
        return UnavailableError(self._client.dependency, said, refused=True)

    def _await_turn(self, call: Call, tokens: int, *, again: bool) -> None:
        if self._clock() > call.until:
            if again:
                self._pace.give_up()
            said = f"{self._client.host} is slow: not all was answered within {LONGEST:.0f} s"
            raise UnavailableError(self._client.dependency, said, refused=True)
        while (seconds := self._pace.wait(tokens, again=again)) > 0:
            late = self._clock() + seconds > call.until
            if late or call.error is not None or self._closed.wait(seconds):
                if again:
                    self._pace.give_up()
                if self._closed.is_set() or call.error is not None:
                    raise Stopped
                said = (
                    f"{self._client.host} takes no more for {seconds:.0f} s, by what it said, by what is configured, "
                    "or by what it was seen to take"
                )
                raise UnavailableError(self._client.dependency, said, wait=seconds, refused=True)

    def _block(self, vectors: Sequence[Vector]) -> Vectors:
        if self._wire.kind is VectorKind.SPARSE:
            return SparseVectors.of(cast("Sequence[SparseVector]", vectors))
        if not vectors:
            return np.empty((0, self.info().dimension or 0), np.float32)
        return np.stack(cast("Sequence[DenseVector]", vectors))
