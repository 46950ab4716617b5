"""The vLLM plugin: both stages run inside the prefill, and each segment of decoder layers has its own KV cache."""


def register() -> None:
    """Entry point of ``vllm.general_plugins``; runs in every vLLM process, possibly more than once."""
    from duet_server.engine.registration import register_models

    register_models()
