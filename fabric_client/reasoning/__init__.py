"""One public shape for a model's reasoning, whatever its engine sends.

    engine                                        user
    delta.reasoning (Ollama, vLLM)                reasoning, and reasoning_content beside it
    delta.reasoning_content (llama-server, …)     the same
    content "<think>a</think>b", harmony          reasoning_content "a", content "b"
    usage                                         and analysis_tokens, final_tokens

Response filters for ``/v1/chat/completions``, streamed or not; ``docs/reasoning.md`` is for API
users.  Pure: imports only ``fabric_client.sse`` and the types of ``fabric_client.translation``.
"""

from fabric_client.reasoning.response_filter import HEADER, RAW, ReasoningFilter

__all__ = ["HEADER", "RAW", "ReasoningFilter"]
