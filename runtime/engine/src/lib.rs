//! The inference engine: model files, a planned graph of operations, and a backend per device.
