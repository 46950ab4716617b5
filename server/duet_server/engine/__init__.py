"""The vLLM plugin: both DUET stages inside the prefill, each segment of layers with a KV cache of its own."""


def register() -> None:
    """Entry point of ``vllm.general_plugins``; runs in every vLLM process, possibly more than once."""
    from duet_server.engine.registration import register_models

    register_models()
