//! Models over HTTP: OpenAI and Open Inference Protocol endpoints in front of the engine.
