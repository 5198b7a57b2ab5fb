# ruff: noqa: T201 - examples print
"""LangChain: set FABRIC_URL, FABRIC_KEY and FABRIC_MODEL.

If the server has no public certificate: SSL_CERT_FILE=ca.pem
"""

import os

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

model = ChatOpenAI(
    base_url=f"{os.environ['FABRIC_URL']}/v1",
    api_key=SecretStr(os.environ["FABRIC_KEY"]),
    model=os.environ["FABRIC_MODEL"],
    max_tokens=16,  # type: ignore[call-arg]
)
for chunk in model.stream("Say hello."):
    print(chunk.text, end="", flush=True)
print()

embeddings = OpenAIEmbeddings(
    base_url=f"{os.environ['FABRIC_URL']}/v1",
    api_key=SecretStr(os.environ["FABRIC_KEY"]),
    model=os.environ["FABRIC_MODEL"],
    check_embedding_ctx_length=False,
)
print(len(embeddings.embed_query("hello")), "numbers")
