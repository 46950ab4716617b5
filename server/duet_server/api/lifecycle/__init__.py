"""From start to drained: health, the gate for requests, the engine's health, one id per request."""
