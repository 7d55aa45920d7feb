"""OpenAI's client, unmodified, against `kedge infer`: chats, completions, embeddings, and what errors become.

Usage: openai_client.py BASE_OF_TEXT KEY [BASE_OF_VECTORS]
"""

import asyncio
import sys

import openai

base, key = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
talk = [{"role": "user", "content": "What is a pod?"}]


def refused(kind, work, **expected):
    """The error that `work` must end with, which must be of that class."""
    try:
        work()
    except kind as error:
        assert type(error) is kind, error
        for name, value in expected.items():
            assert getattr(error, name) == value, (name, getattr(error, name), error)
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


models = client.models.list().data
assert [model.id for model in models] == ["demo"], models
assert client.models.retrieve("demo").owned_by == "kedge"

# Chats, whole and streamed.
whole = client.chat.completions.create(model="demo", messages=talk, temperature=0, max_completion_tokens=60)
assert "smallest thing Kubernetes runs" in whole.choices[0].message.content, whole
assert whole.choices[0].finish_reason == "stop" and whole.choices[0].message.role == "assistant", whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
told, usage = "", None
with client.chat.completions.create(
    model="demo", messages=talk, temperature=0, stream=True, stream_options={"include_usage": True}, user="till-3"
) as stream:
    for piece in stream:
        usage = piece.usage or usage
        told += (piece.choices[0].delta.content or "") if piece.choices else ""
assert told == whole.choices[0].message.content, told
assert usage.completion_tokens == whole.usage.completion_tokens, usage
with client.chat.completions.stream(model="demo", messages=talk, temperature=0) as stream:
    assert "".join(event.delta for event in stream if event.type == "content.delta") == told
    assert stream.get_final_completion().choices[0].message.content == told
several = client.chat.completions.create(
    model="demo", messages=talk, n=2, seed=7, temperature=1, logprobs=True, top_logprobs=2, max_tokens=5, stop=["zebra"]
)
assert len(several.choices) == 2 and len(several.choices[0].logprobs.content[0].top_logprobs) == 2, several
parts = [{"role": "user", "content": [{"type": "text", "text": "What is a pod?"}]}]
again = client.chat.completions.create(
    model="demo", messages=parts, temperature=0, store=False, metadata={"a": "b"}, service_tier="auto"
)
assert again.choices[0].message.content == told, again
raw = client.chat.completions.with_raw_response.create(model="demo", messages=talk, max_tokens=1, store=False)
assert "store is ignored" in raw.headers["warning"], raw.headers

# Completions.
made = client.completions.create(model="demo", prompt=["On Monday", "On Friday"], max_tokens=4, temperature=0, logprobs=1)
assert [choice.finish_reason for choice in made.choices] == ["length", "length"], made
assert len(made.choices[0].logprobs.tokens) == 4, made
pieces = list(client.completions.create(model="demo", prompt="On Monday", max_tokens=4, temperature=0, stream=True))
assert "".join(piece.choices[0].text for piece in pieces) == made.choices[0].text, pieces


async def at_once():
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key) as many:
        ask = lambda: many.chat.completions.create(model="demo", messages=talk, temperature=0)
        return await asyncio.gather(*(ask() for _ in range(8)))


assert {answer.choices[0].message.content for answer in asyncio.run(at_once())} == {told}

# Errors are of the classes that programs catch.
chat = client.chat.completions.create
refused(openai.NotFoundError, lambda: chat(model="other", messages=talk), code="model_not_found", param="model")
error = refused(openai.BadRequestError, lambda: chat(model="demo", messages=talk, temperature=1.9, top_p=7), param="top_p")
assert error.type == "invalid_request_error" and "top_p" in error.message, error
refused(openai.BadRequestError, lambda: chat(model="demo", messages=[]), param="messages")
refused(openai.BadRequestError, lambda: chat(model="demo", messages=talk, tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")
stranger = openai.OpenAI(base_url=f"{base}/v1", api_key="wrong", max_retries=0)
refused(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")
endless = dict(model="demo", messages=talk, n=16, max_tokens=900, extra_body={"ignore_eos": True})
late = refused(openai.InternalServerError, lambda: chat(**endless, extra_headers={"X-Request-Timeout": "0.05"}))
assert late.status_code == 504, late
refused(openai.APITimeoutError, lambda: chat(**endless, timeout=0.05))
with_error = chat(**endless, stream=True, extra_headers={"X-Request-Timeout": "0.2"})
refused(openai.APIError, lambda: list(with_error))

# Vectors; the client asks for base64 by itself.
if len(sys.argv) > 3:
    vectors = openai.OpenAI(base_url=f"{sys.argv[3]}/v1", api_key="any", max_retries=0).embeddings
    made = vectors.create(model="minilm", input=["a cat", "a kitten", "the tax form"], user="till-3")
    cat, kitten, form = (entry.embedding for entry in made.data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(cat) == 384 and abs(dot(cat, cat) - 1) < 1e-3 and dot(cat, kitten) > dot(cat, form), made.usage
    floats = vectors.create(model="minilm", input="a cat", encoding_format="float").data[0].embedding
    assert max(abs(a - b) for a, b in zip(floats, cat)) < 1e-6
    refused(openai.BadRequestError, lambda: vectors.create(model="minilm", input="a", dimensions=7), param="dimensions")

print("everything was as it should be")
