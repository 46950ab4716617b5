"""From ready to drained: health, the gate for requests, the engine's pulse, one id per request."""
